"""Forms of containers: how the contents of lists, dicts, object attributes and the like are read and put back.

A form reads and writes through the built-in type that the container's class derives from, so a subclass that overrides
``update`` or ``[...]`` makes no difference.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from types import CellType, MemberDescriptorType
from typing import Any, Protocol

from lightning_vamo.loop.guards.kinds import by_type

_MISSING = object()


class View(Protocol):
    """A view, which iterates over the present items of a container."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class Form(ABC):
    """A form of containers: how their contents are read and put back."""

    @abstractmethod
    def views(self, owner: Any) -> tuple[View, ...]:
        """Views of the present contents: the contents are unchanged while every item is the same object.

        Args:
            owner: The container.

        Returns:
            Views that follow the container.
        """

    @abstractmethod
    def capture(self, owner: Any) -> Any:
        """A copy of the present contents, with the container's own items.

        Args:
            owner: The container.

        Returns:
            The contents.
        """

    @abstractmethod
    def put(self, owner: Any, contents: Any) -> None:
        """Give a container other contents.

        Args:
            owner: The container.
            contents: Contents that :meth:`capture` returned.
        """

    def items(self, contents: Any) -> Iterable[Any]:
        """The objects in captured contents that may hold state themselves."""
        items: Iterable[Any] = contents
        return items


class Sequences(Form):
    """Lists, deques and sets."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def views(self, owner: Any) -> tuple[View, ...]:
        """The container itself, or a view that shows all items if the container's class may hide some."""
        return (owner if type(owner) is self._base else _BaseView(owner, self._base),)

    def capture(self, owner: Any) -> Sequence[Any]:
        """The items in their order."""
        return list(self._base.__iter__(owner))

    def put(self, owner: Any, contents: Sequence[Any]) -> None:
        """Replace all items."""
        if self._base is list:
            list.__setitem__(owner, slice(None), contents)
            return
        self._base.clear(owner)
        (set.update if self._base is set else deque.extend)(owner, contents)


class Mappings(Form):
    """Dicts of all kinds, whose items have an order."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def views(self, owner: Any) -> tuple[View, ...]:
        """Keys and values."""
        return self._base.keys(owner), dict.values(owner)

    def capture(self, owner: Any) -> dict[Any, Any]:
        """The items in their order."""
        return dict(self._base.items(owner))

    def put(self, owner: Any, contents: dict[Any, Any]) -> None:
        """Put back the changed values; if the keys or their order have changed, put back all items."""
        base = self._base
        if list(base.keys(owner)) != list(contents):
            base.clear(owner)
        for key, value in contents.items():
            if dict.get(owner, key, _MISSING) is not value:
                base.__setitem__(owner, key, value)

    def items(self, contents: dict[Any, Any]) -> Iterable[Any]:
        """The values."""
        return contents.values()


class Attributes(Form):
    """An object's ``__dict__``, which must not be empty even for a moment: another thread may look for an attribute."""

    def views(self, owner: dict[str, Any]) -> tuple[View, ...]:
        """The values."""
        return (owner.values(),)

    def capture(self, owner: dict[str, Any]) -> dict[str, Any]:
        """The attributes by name."""
        return owner.copy()

    def put(self, owner: dict[str, Any], contents: dict[str, Any]) -> None:
        """Set attributes that changed or are missing, and delete new attributes."""
        for name, value in contents.items():
            if owner.get(name, _MISSING) is not value:
                owner[name] = value
        for name in owner.keys() - contents.keys():
            del owner[name]

    def items(self, contents: dict[str, Any]) -> Iterable[Any]:
        """The values."""
        return contents.values()


class ClassAttributes(Form):
    """The attributes of a class, except those that Python itself sets."""

    def views(self, owner: type) -> tuple[View, ...]:
        """All values."""
        return (vars(owner).values(),)

    def capture(self, owner: type) -> dict[str, Any]:
        """The attributes by name."""
        return {name: value for name, value in vars(owner).items() if not name.startswith("__")}

    def put(self, owner: type, contents: dict[str, Any]) -> None:
        """Set attributes that changed or are missing, and delete new attributes."""
        now = self.capture(owner)
        for name, value in contents.items():
            if now.get(name, _MISSING) is not value:
                setattr(owner, name, value)
        for name in now.keys() - contents.keys():
            delattr(owner, name)

    def items(self, contents: dict[str, Any]) -> Iterable[Any]:
        """The values, except methods: the names in a method refer to code, not to state."""
        return (value for value in contents.values() if not hasattr(type(value), "__get__"))


class Cells(Form):
    """A variable in the closure of a function."""

    def views(self, owner: CellType) -> tuple[View, ...]:
        """The variable, if it has a value."""
        return (_CellView(owner),)

    def capture(self, owner: CellType) -> tuple[Any, ...]:
        """The value, if there is one."""
        return tuple(_CellView(owner))

    def put(self, owner: CellType, contents: tuple[Any, ...]) -> None:
        """Set the variable, or delete its value."""
        if contents:
            owner.cell_contents = contents[0]
        elif tuple(_CellView(owner)):
            del owner.cell_contents


class Slots(Form):
    """Attributes that an object keeps in slots; the owner is a :class:`SlotsOf`."""

    def views(self, owner: "SlotsOf") -> tuple[View, ...]:
        """The values."""
        return (owner,)

    def capture(self, owner: "SlotsOf") -> tuple[Any, ...]:
        """The values in order."""
        return tuple(owner)

    def put(self, owner: "SlotsOf", contents: tuple[Any, ...]) -> None:
        """Set each slot, or empty the slot."""
        for member, now, value in zip(owner.members, owner, contents, strict=True):
            if now is not value:
                if value is _MISSING:
                    member.__delete__(owner.value)
                else:
                    member.__set__(owner.value, value)


class SlotsOf:
    """An object together with its slots.

    Args:
        value: The object.
        members: The descriptors that read and write the slots.
    """

    def __init__(self, value: Any, members: Sequence[MemberDescriptorType]) -> None:
        self.value = value
        self.members = members

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Any]:
        for member in self.members:
            try:
                yield member.__get__(self.value)
            except AttributeError:
                yield _MISSING


class _CellView:
    def __init__(self, cell: CellType) -> None:
        self._cell = cell

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield self._cell.cell_contents
        except ValueError:  # the variable has no value yet
            return


class _BaseView:
    def __init__(self, owner: Any, base: Any) -> None:
        self._owner = owner
        self._base = base

    def __len__(self) -> int:
        length: int = self._base.__len__(self._owner)
        return length

    def __iter__(self) -> Iterator[Any]:
        items: Iterator[Any] = self._base.__iter__(self._owner)
        return items


ATTRIBUTES, CLASS, CELL, SLOTS = Attributes(), ClassAttributes(), Cells(), Slots()
BUILT_IN: dict[type, Form] = {
    OrderedDict: Mappings(OrderedDict),
    dict: Mappings(dict),
    list: Sequences(list),
    set: Sequences(set),
    deque: Sequences(deque),
}


@by_type
def form_of(cls: type) -> Form:
    """The form of a list, dict, set or deque.

    Args:
        cls: The container's type, which may derive from Python's own type.

    Returns:
        The form.
    """
    return next(BUILT_IN[base] for base in cls.__mro__ if base in BUILT_IN)
