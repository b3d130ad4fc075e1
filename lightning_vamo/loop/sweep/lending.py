"""Lend a batch to several evaluations of ``training_step``, unchanged each time."""

from operator import attrgetter
from typing import Any

from torch import Tensor

from lightning_vamo.loop.guards.tensors import is_plain, same_bits
from lightning_vamo.loop.plan.tensors import fresh_copy, tensors_in

_version = attrgetter("_version")


class LentBatch:
    """A batch that ``training_step`` may change, as in ``labels = batch.pop("labels")`` or ``images /= 255``.

    At first, ``training_step`` gets a copy. If the copy is unchanged after the evaluation, ``training_step`` gets the batch
    itself from then on, and the version counters of the batch's tensors show whether the batch is still left alone. If the copy
    was changed, each evaluation gets a new copy.

    Args:
        batch: The batch.

    Attributes:
        spoilt: Whether ``training_step`` has changed the batch itself, after it left the first copy alone.
    """

    def __init__(self, batch: Any) -> None:
        self._batch = batch
        self._copy: Any = None
        self._is_left_alone: bool | None = None
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self.spoilt = False

    def lend(self) -> Any:
        """The batch for one evaluation; call :meth:`take_back` after the evaluation."""
        if self._is_left_alone:
            return self._batch
        copy = fresh_copy(self._batch)
        if self._is_left_alone is None:
            self._copy = copy
        return copy

    def take_back(self) -> None:
        """Find out whether the evaluation has changed the batch."""
        if self._is_left_alone:
            self.spoilt |= [*map(_version, self._tensors)] != self._versions
        elif self._is_left_alone is None:
            self._is_left_alone = _are_same(self._copy, self._batch)
            self._copy = None
            if self._is_left_alone:
                self._tensors = [*tensors_in(self._batch)]
                self._versions = [*map(_version, self._tensors)]


_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)


def _are_same(one: Any, other: Any) -> bool:
    """Whether a batch and its copy are still the same; False if they cannot be compared."""
    if type(one) is not type(other):
        return False
    if type(one) is Tensor:
        same = one.shape == other.shape and one.dtype == other.dtype and one.requires_grad == other.requires_grad
        return same and is_plain(one) and same_bits(one, other)
    if type(one) in (list, tuple) or hasattr(one, "_fields"):
        return len(one) == len(other) and all(map(_are_same, one, other))
    if type(one) is dict:
        return list(one) == list(other) and all(map(_are_same, one.values(), other.values()))
    return type(one) in _CONSTANTS and (one is other or one == other)
