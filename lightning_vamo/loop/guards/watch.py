"""Watch the tensors of a module's state: find out quickly which tensors were written to, and put their numbers back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.loop.guards.tensors import FrozenCopy, Place, TensorCopy, WholeCopy, written

_version = attrgetter("_version")
# The address alone does not tell: a resized storage may keep its address, and so may another part of the same storage.
_LAYOUT: tuple[Callable[[Tensor], Any], ...] = (Tensor.data_ptr, attrgetter("shape"), Tensor.stride)
_requires_grad = attrgetter("requires_grad")
_gradient = attrgetter("grad")


@dataclass
class Learned:
    """What successive states of a module have found out about writes that version counters do not show.

    Attributes:
        written: The tensors with such writes, by ``id``.
        weights: Whether the probed parameters have such writes.
        batches: Whether batches have such writes.
        looks: Number of forward passes that were cleaned up after.
    """

    written: dict[int, Any] = field(default_factory=dict)
    weights: bool = False
    batches: bool = False
    looks: int = 0

    @property
    def looks_again(self) -> bool:
        """Whether to compare all numbers now: after the first forward pass, the second, the fourth, and so on."""
        return self.looks & (self.looks - 1) == 0


class Watch:
    """Watches tensors, and puts their numbers back from copies.

    A write moves a tensor's version counter, except a write through ``.data`` or from numpy, and BatchNorm's writes to its
    running statistics. So the running statistics are put back each time without a comparison. After the first forward pass, the
    second, the fourth and so on, all numbers are compared. If a tensor has changed although its counter has not moved, the
    tensor is put back each time from then on.

    Args:
        copies: The tensors whose numbers are put back.
        unseen: The ``id`` of the tensors that are known to have writes that the counter does not show.
        places: The tensors whose storage is put back, but whose numbers are not.
        learned: The findings of earlier states.
    """

    def __init__(self, copies: Sequence[TensorCopy], unseen: set[int], places: Sequence[Place], learned: Learned) -> None:
        self._learned = learned
        self._unseen = unseen
        self._places = places
        self._watched: list[TensorCopy] = []
        self._each_time: list[TensorCopy] = []
        self.add(copies)

    def add(self, copies: Sequence[TensorCopy]) -> None:
        """Watch further tensors.

        Args:
            copies: The tensors.
        """
        for copy in copies:
            each_time = id(copy.owner) in self._unseen or self._learned.written.get(id(copy.owner)) is copy.owner
            (self._each_time if each_time and copy.copy is not None else self._watched).append(copy)
        self._remember()

    def _remember(self) -> None:
        copies = [*self._watched, *self._each_time]
        bound = [place for place in [*copies, *self._places] if not isinstance(place, WholeCopy)]
        self._bound = [place for place in bound if not place.is_sharded]
        self._tensors = [place.tensor for place in self._bound]
        self._layouts = self._layouts_now()
        self._sharded = [place for place in bound if place.is_sharded]  # their layout takes longer to read
        self._counted = [copy.tensor for copy in self._watched]
        self._versions = [*map(_version, self._counted)]
        self._pairs = _pairs(self._each_time)
        self._all_pairs = _pairs([copy for copy in copies if not isinstance(copy, (FrozenCopy, WholeCopy))])
        self._slow = [copy for copy in copies if isinstance(copy, (FrozenCopy, WholeCopy))]

    def put_back(self) -> None:
        """Put back the tensors that were written to."""
        self._rebind()
        if [*map(_version, self._counted)] != self._versions:
            for copy, version in zip(self._watched, self._versions, strict=True):
                if copy.tensor._version != version:
                    copy.restore()
            self._versions = [*map(_version, self._counted)]
        _copy(self._pairs)
        self._learned.looks += 1
        if self._learned.looks_again:
            self._look()

    def _rebind(self) -> None:
        if self._are_elsewhere():
            for place in [*self._bound, *self._sharded]:
                place.rebind()

    def _are_elsewhere(self) -> bool:
        return self._layouts_now() != self._layouts or any(place.is_elsewhere() for place in self._sharded)

    def _layouts_now(self) -> list[list[Any]]:
        return [[*map(part, self._tensors)] for part in _LAYOUT]

    def _look(self) -> None:
        """Compare all numbers; put back tensors with writes that the version counter does not show, now and each time."""
        found = written(self._watched)
        if found:
            self._learned.written |= {id(copy.owner): copy.owner for copy in found}
            for copy in found:
                copy.restore()
                self._watched.remove(copy)
            self._each_time += found
            self._remember()

    def restore(self) -> None:
        """Put back all numbers, including writes that the version counter does not show."""
        self._rebind()
        _copy(self._all_pairs)
        for copy in self._slow:
            copy.restore()

    def is_as_it_was(self) -> bool:
        """Whether there are no numbers to put back, and each tensor has its storage."""
        return not (self._watched or self._each_time) and not self._are_elsewhere()

    def refresh(self) -> bool:
        """Bring all copies up to date.

        Returns:
            False if a tensor has another storage; then nothing has been done.
        """
        if self._are_elsewhere():
            return False
        _copy((self._all_pairs[1], self._all_pairs[0]))
        fresh = {id(copy): copy.refreshed() for copy in self._slow}
        if any(copy is not fresh[id(copy)] for copy in self._slow):
            self._watched = [fresh.get(id(copy), copy) for copy in self._watched]
            self._each_time = [fresh.get(id(copy), copy) for copy in self._each_time]
            self._remember()
        self._versions = [*map(_version, self._counted)]
        return True

    def changed(self) -> list[TensorCopy]:
        """The tensors whose version counter or storage has changed."""
        if [*map(_version, self._counted)] == self._versions and not self._are_elsewhere():
            return []
        pairs = zip(self._watched, self._versions, strict=True)
        written = [copy for copy, version in pairs if copy.tensor._version != version or copy.is_elsewhere()]
        return written + [copy for copy in self._each_time if copy.is_elsewhere()]

    @property
    def frozen(self) -> dict[int, TensorCopy]:
        """The copies that later states can use again, by the ``id`` of the original."""
        return {id(copy.owner): copy for copy in self._slow if isinstance(copy, FrozenCopy)}


_Pairs = tuple[list[Tensor], list[Tensor]]


def _pairs(copies: Iterable[TensorCopy]) -> _Pairs:
    """Pairs of tensors and copies of their numbers."""
    pairs = [(copy.numbers, copy.copy) for copy in copies if copy.copy is not None]
    return [numbers for numbers, _ in pairs], [copy for _, copy in pairs]


def _copy(pairs: _Pairs) -> None:
    if pairs[0]:
        torch._foreach_copy_(*pairs)


class Flags:
    """The ``requires_grad`` flag and the gradient of each parameter, and of other tensors.

    Args:
        parameters: The parameters and tensors.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._flags = [*map(_requires_grad, parameters)]
        self._gradients = [*map(_gradient, parameters)]

    def are_as_they_were(self) -> bool:
        """Whether no flag and no gradient has changed."""
        flags = [*map(_requires_grad, self._parameters)]
        return flags == self._flags and all(map(is_, map(_gradient, self._parameters), self._gradients))

    def put_back(self) -> None:
        """Put back ``requires_grad`` and ``grad`` where they have changed."""
        if [*map(_requires_grad, self._parameters)] != self._flags:
            for parameter, flag in zip(self._parameters, self._flags, strict=True):
                # A graph may have reached a tensor since. A view cannot be taken off its graph.
                (parameter if parameter.is_leaf or parameter._is_view() else parameter.detach_()).requires_grad_(flag)
        if not all(map(is_, map(_gradient, self._parameters), self._gradients)):
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                if parameter.grad is not gradient:
                    parameter.grad = gradient
