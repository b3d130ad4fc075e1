"""A batch of a sweep, and its loss as a function of the parameters alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import scalar
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.plan.tensors import fresh_copy, size_in_bytes, tensors_in
from lightning_vamo.loop.sweep.oracle import Oracle


class SweptBatch:
    """A batch of the plan, whose loss is a function of the parameters alone: same batch, randomness, and module each time.

    Args:
        batch: The batch, on the module's device, just loaded.
        position: Its place in the plan.
        oracle: Evaluates the loss of a batch.
        state: The module's state, to which it returns after each evaluation.
        reshard: Lets go of parameters that FSDP2 has gathered for an evaluation.
    """

    def __init__(
        self,
        batch: Any,
        position: int,
        oracle: Oracle,
        state: ModuleState,
        reshard: Callable[[], None],
    ) -> None:
        self._batch = batch
        self.position = position
        self._oracle = oracle
        self._state = state
        self._reshard = reshard
        # A transfer hook may have left something on the module for the step to find.
        self._attributes = state.changed_attributes()
        self._restore()
        self._random = compat.rng_states(oracle.module.device)
        self.bytes = size_in_bytes(tensors_in(batch))
        """Memory that the batch's tensors take; 0 where none are found."""
        self.evaluations = 0
        """Forward passes of it so far."""
        self._several = oracle.trainer.world_size > 1
        self.skipped = batch is None
        """Whether ``training_step`` gave no loss."""
        self.epsilon = 0.0
        """Machine epsilon of the type that the loss came in."""
        self.none = torch.zeros((), device=oracle.module.device)
        """Stands for a loss where there is none."""
        self.origin = self.loss()
        """The loss where the parameters are now, at the snapshot."""

    @property
    def visits(self) -> bool:
        """Whether the batch is to be evaluated at more points.

        On one of several ranks a batch that gave no loss is evaluated too: forward passes may communicate, and those of the
        other ranks would wait.
        """
        return self._batch is not None and (self._several or not self.skipped)

    @property
    def rounding(self) -> float:
        """Machine epsilon of the arithmetic that the loss comes from, or of its type if that is coarser."""
        dtype = self._oracle.arithmetic
        return max(self.epsilon, 0.0 if dtype is None else torch.finfo(dtype).eps)

    def visit(self) -> Tensor:
        """The loss at the current parameters, shape ``()``; zero where there is none."""
        loss = self.loss()
        return self.none if loss is None else loss

    def loss(self) -> Tensor | None:
        """The loss at the current parameters, shape ``()``; None if the batch is skipped."""
        if not self.visits:
            return None
        if self.evaluations > 0:  # else the batch has just been loaded, and the generators are there
            compat.set_rng_states(self._random)
        for module, attributes in self._attributes:
            vars(module).update(attributes)
        self.evaluations += 1
        # A copy, since a step may take its batch apart: `labels = batch.pop("labels")`, or `images /= 255`.
        try:
            value = self._oracle.loss(fresh_copy(self._batch), self.position)
        finally:
            self._reshard()
        self.skipped |= value is None
        loss = None
        if value is not None:
            loss = scalar(value).clone()  # of what may be a tensor on the module, before that is put back
            self.epsilon = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        self._restore()
        return loss

    def _restore(self) -> None:
        self._state.restore_tensors()
        self._state.restore_attributes()
