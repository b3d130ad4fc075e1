"""Replace an attribute of an object for the length of a context."""

_MISSING = object()


class replaced:
    """Replace an attribute on the instance for the length of the context, then restore the instance's former attribute.

    A class, since each step enters several such contexts, and to enter a generator's takes three times as long.

    Args:
        owner: The instance.
        name: Name of the attribute.
        value: What it is in the context.
    """

    __slots__ = ("_before", "_name", "_own", "_value")

    def __init__(self, owner: object, name: str, value: object) -> None:
        self._own = vars(owner)
        self._name = name
        self._value = value

    def __enter__(self) -> None:
        self._before = self._own.get(self._name, _MISSING)
        self._own[self._name] = self._value

    def __exit__(self, *exception: object) -> None:
        if self._before is _MISSING:
            self._own.pop(self._name, None)
        else:
            self._own[self._name] = self._before
