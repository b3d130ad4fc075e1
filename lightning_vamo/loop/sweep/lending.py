"""Lend a batch to several evaluations of ``training_step``, unchanged each time."""

from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor

from lightning_vamo.loop.guards.tensors import is_plain, same_bits
from lightning_vamo.loop.guards.watch import Learned
from lightning_vamo.loop.plan.tensors import fresh_copy, tensors_in

_version = attrgetter("_version")


class LentBatch:
    """A batch that ``training_step`` may change, as in ``labels = batch.pop("labels")`` or ``images /= 255``.

    At first, ``training_step`` gets a copy. If the copy is unchanged after the evaluation, ``training_step`` gets the batch
    itself from then on, and the version counters of the batch's tensors show whether the batch is still left alone. If the copy
    was changed, each evaluation gets a new copy.

    Args:
        batch: The batch.
        learned: What is known of the module's step. To compare numbers is to wait for a GPU, so there that is done now
            and then, and in between version counters have to do.

    Attributes:
        spoilt: Whether ``training_step`` has changed the batch itself, after it left the first copy alone.
    """

    def __init__(self, batch: Any, learned: Learned) -> None:
        self._batch = batch
        self._copy: Any = None
        self._learned = learned
        self._is_left_alone: bool | None = False if learned.batches else None
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
            self._remember(copy)
        return copy

    def _remember(self, batch: Any) -> None:
        self._tensors = [*tensors_in(batch)]
        self._versions = [*map(_version, self._tensors)]

    @property
    def _is_written(self) -> bool:
        return [*map(_version, self._tensors)] != self._versions

    def take_back(self) -> None:
        """Find out whether the evaluation has changed the batch."""
        if self._is_left_alone:
            self.spoilt |= self._is_written
        elif self._is_left_alone is None:
            closely = self._learned.looks_again
            same = _are_same(self._copy, self._batch, closely=closely)
            self._is_left_alone = same and not self._is_written
            # Nothing but the numbers tells of such a write, and they are not compared each time.
            self._learned.batches |= closely and not same and not self._is_written
            self._copy = None
            if self._is_left_alone:
                self._remember(self._batch)


_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)


def _are_same(one: Any, other: Any, *, closely: bool) -> bool:
    """Whether a batch and its copy are still the same; False if they cannot be compared. On a GPU only if ``closely``."""
    if type(one) is not type(other):
        return False
    if type(one) is Tensor:
        same = one.shape == other.shape and one.dtype == other.dtype and one.requires_grad == other.requires_grad
        seen = same and is_plain(one) and (closely or one.device.type == "cpu")
        return same_bits(one, other) if seen else same and is_plain(one)
    if type(one) in (list, tuple) or hasattr(one, "_fields"):
        return len(one) == len(other) and all(map(partial(_are_same, closely=closely), one, other))
    if type(one) is dict:
        return list(one) == list(other) and all(map(partial(_are_same, closely=closely), one.values(), other.values()))
    return type(one) in _CONSTANTS and (one is other or one == other)
