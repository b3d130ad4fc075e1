"""The contents of containers: find out quickly whether they have changed, and put them back."""

from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from lightning_vamo.loop.guards.forms import Form, View, form_of
from lightning_vamo.loop.guards.kinds import KINDS, Kind

LARGE = 1024
"""In a container with more items than this, the items are put back, but the insides of the items are left alone."""


# Bytes of tensors that are gone and still watched, and the bytes that each of these tensors counts in addition.
_MOST_GONE, _EACH_GONE = 2**16, 2**10
_SIMPLE = {Kind.LEFT_ALONE, Kind.TENSOR}


class Container(NamedTuple):
    """A container, and the form that reads the container and puts its contents back."""

    owner: Any
    form: Form


class Contents:
    """The contents of containers, as they are now.

    After most forward passes nothing has changed, and this has to be found out fast: each container has a view of its items,
    and one pass in C over all views compares each item with the object that was there.

    Args:
        containers: The containers. A container within a container is an item of the list too.
        empty: Further containers, of Python's own types, that are empty, as most containers of a module are.
    """

    def __init__(self, containers: Sequence[Container], empty: Sequence[Any]) -> None:
        self._containers = containers
        self._empty = empty
        self._before = [form.capture(owner) for owner, form in containers]
        self._gone = 0
        self._look_at_each()

    def _look_at_each(self) -> None:
        views: list[View] = []
        for owner, form in self._containers:
            views += form.views(owner)
        self._lengths = [*map(len, views)]
        self._large = [view for view in views if len(view) > LARGE] if max(self._lengths, default=0) > LARGE else []
        self._views = [view for view in views if len(view) <= LARGE] if self._large else views
        self._remember()

    def _remember(self) -> None:
        self._lengths = [*map(len, self._views)]
        self._items = [*chain.from_iterable(self._views)]
        self._many = [[*view] for view in self._large]

    def unchanged(self, exactly: bool = False) -> bool:
        """Whether every container still holds the same objects.

        Args:
            exactly: Whether an equal but different object counts as a change in containers of more than ``LARGE`` items too.

        Returns:
            True if nothing has changed.
        """
        return (
            [*map(len, self._views)] == self._lengths
            and not any(self._empty)
            and all(map(is_, chain.from_iterable(self._views), self._items))
            and all(map(_are_same if exactly else _are_equal, self._large, self._many))
        )

    def put_back(self, exactly: bool = False) -> None:
        """Put back the contents that have changed.

        Args:
            exactly: See :meth:`unchanged`.
        """
        if self.unchanged(exactly):
            return
        for (owner, form), before in zip(self._containers, self._before, strict=True):
            form.put(owner, before)
        for owner in filter(None, self._empty):
            form_of(type(owner)).put(owner, {} if isinstance(owner, dict) else ())
        # Keys and members may have come back as equal objects, and members of a set in another order.
        self._remember()

    def refresh(self) -> list[Any] | None:
        """Take the present contents as the contents to put back, if only constants, such as numbers, and tensors have changed.

        Returns:
            The new tensors. None if other new objects may have to be walked into, or if too many tensors are gone, whose memory
            would be kept for nothing.
        """
        if self.unchanged(exactly=True):
            return []
        if any(self._empty):
            return None
        now = [form.capture(owner) for owner, form in self._containers]
        come: list[Any] = []
        for (_, form), before, held in zip(self._containers, self._before, now, strict=True):
            if not _same(form, before, held):
                here, there = ({id(item): item for item in form.items(items)} for items in (before, held))
                gone = [item for key, item in here.items() if key not in there]
                new = [item for key, item in there.items() if key not in here]
                if not all(KINDS[type(item)] in _SIMPLE for item in (*gone, *new)):
                    return None
                self._gone += sum(_EACH_GONE + item.nbytes for item in gone if isinstance(item, Tensor))
                come += (item for item in new if isinstance(item, Tensor))
        if self._gone > _MOST_GONE:
            return None
        self._before = now
        self._look_at_each()
        return come

    def changed(self) -> list[tuple[Container, Any]]:
        """The containers that hold other objects than before, and their present contents."""
        if self.unchanged():
            return []
        now = [form.capture(owner) for owner, form in self._containers]
        pairs = zip(self._containers, self._before, now, strict=True)
        changed = [(container, held) for container, before, held in pairs if not _same(container.form, before, held)]
        filled = (Container(owner, form_of(type(owner))) for owner in filter(None, self._empty))
        return changed + [(container, container.form.capture(container.owner)) for container in filled]


def _are_equal(view: View, items: list[Any]) -> bool:
    """Whether many items are the same or equal: one comparison of lists, much faster than to compare each item's identity."""
    try:
        return [*view] == items
    except Exception:  # an object that compares in its own way, as a tensor does, was replaced by another object
        return False


def _are_same(view: View, items: list[Any]) -> bool:
    return len(view) == len(items) and all(map(is_, view, items))


def _same(form: Form, before: Any, now: Any) -> bool:
    if len(before) != len(now) or not all(map(is_, form.items(before), form.items(now))):
        return False
    return not isinstance(before, dict) or list(before) == list(now)
