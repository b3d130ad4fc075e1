"""Replace an attribute of an object for the length of a context, and find the function that another has replaced."""

from typing import Any

_MISSING = object()
_BEHIND = "_vamo_behind"


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


def put_before(function: Any, other: Any) -> None:
    """Mark a function that stands in the place of another, which it calls.

    Args:
        function: The function. A decorator around it copies the mark, but is not what the mark holds, so the decorator is not
            taken for the function.
        other: The other function.
    """
    setattr(function, _BEHIND, (function, other))


def behind(function: Any) -> Any:
    """The function in whose place another stands; None if the other was not marked by :func:`put_before`."""
    marked, other = getattr(function, _BEHIND, (None, None))
    return other if marked is function else None
