"""A batch of a sweep, and its loss as a function of the parameters alone."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import scalar
from lightning_vamo.core.probes.point import Point
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.randomness import RandomState
from lightning_vamo.loop.guards.tensors import all_same_bits
from lightning_vamo.loop.plan.tensors import size_in_bytes, tensors_in
from lightning_vamo.loop.sweep.lending import LentBatch
from lightning_vamo.loop.sweep.oracle import Oracle


@functools.cache
def _epsilon(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps) if dtype.is_floating_point else 0.0


class SweptBatch:
    """A batch of the plan, whose loss depends on the parameters alone: each evaluation has the same random numbers and module.

    Args:
        batch: The batch, on the module's device, just loaded.
        position: Position of the batch in the plan.
        oracle: Evaluates the loss of a batch.
        point: The snapshot. The parameters hold the snapshot now, and later hold other points around the snapshot.
        state: The module's state, which is restored after each evaluation.
        reshard: Frees the parameters that FSDP2 has gathered for an evaluation.
    """

    def __init__(
        self,
        batch: Any,
        position: int,
        oracle: Oracle,
        point: Point,
        state: ModuleState,
        reshard: Callable[[], None],
    ) -> None:
        self._batch = LentBatch(batch, state.learned)
        self._given = batch is not None
        self.position = position
        self._oracle = oracle
        self._point = point
        self._state = state
        self._reshard = reshard
        # A transfer hook may have left something on the module for the step to find.
        self._left = state.left_behind()
        self._random = RandomState(oracle.module.device)
        self.bytes = size_in_bytes(tensors_in(batch))
        """Memory that the batch's tensors take; 0 if no tensors are found."""
        self.evaluations = 0
        """Number of forward passes of the batch so far."""
        self._several = oracle.trainer.world_size > 1
        self.skipped = batch is None
        """Whether ``training_step`` gave no loss, or has changed the batch for good."""
        self.epsilon = 0.0
        """Machine epsilon of the type of the loss."""
        self.none = torch.zeros((), device=oracle.module.device)
        """Stands for the loss of a batch without a loss."""
        self.origin = self.loss()
        """The loss at the snapshot; None if the batch is skipped."""

    @property
    def visits(self) -> bool:
        """Whether the batch is to be evaluated at more points.

        On one of several ranks, a batch that gave no loss is evaluated too: forward passes may communicate, and the forward
        passes of the other ranks would wait.
        """
        return self._given and (self._several or not self.skipped)

    @property
    def rounding(self) -> float:
        """Machine epsilon of the type that the loss is computed in, or of the loss's own type if that type is coarser."""
        dtype = self._oracle.arithmetic
        return max(self.epsilon, 0.0 if dtype is None else torch.finfo(dtype).eps)

    def visit(self) -> Tensor:
        """The loss at the current parameters, shape ``()``; zero for a batch without a loss."""
        loss = self.loss()
        return self.none if loss is None else loss

    def loss(self) -> Tensor | None:
        """The loss at the current parameters, shape ``()``; None if the batch is skipped."""
        if not self.visits:
            return None
        is_first = self.evaluations == 0  # then the batch has just been loaded, and the generators are there
        if not is_first:
            self._random.set()
        self._left.lay()
        versions = self._versions()
        self.evaluations += 1
        try:
            value = self._oracle.loss(self._batch.lend(), self.position)
        finally:
            self._reshard()
        if is_first:
            self._random.settle()
        loss = None
        if value is not None:
            loss = scalar(value).clone()  # the loss may be a tensor on the module, which is about to be put back
            self.epsilon = _epsilon(value.dtype)
        self._clean_up(versions, is_first)
        self.skipped |= value is None or self._batch.spoilt
        return loss

    def _clean_up(self, versions: list[int], is_first: bool) -> None:
        """Restore the state that the evaluation changed."""
        self._batch.take_back()
        self._left.take_away()
        if self._versions() != versions or self._is_moved(is_first):
            self._point.renew()
        self._state.put_back()

    def _versions(self) -> list[int]:
        return [parameter._version for parameter in self._point.parameters]

    def _is_moved(self, is_at_point: bool) -> bool:
        """Whether the step writes to the parameters behind their version counters, as in ``weight.data.clamp_(-1, 1)``."""
        learned = self._state.learned
        if is_at_point and learned.looks_again and not learned.weights:
            learned.weights = not all_same_bits(self._point.parameters, self._point.origin)
        return learned.weights
