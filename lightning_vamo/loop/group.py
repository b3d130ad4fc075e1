"""Groups of the sweep's batches: as many as memory allows are held at once, so that a perturbation is paid once for all."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes import Difference, Snapshot, perturbed_losses, scalar
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards import ModuleState
from lightning_vamo.loop.table import NOISE_SAMPLES, Row
from lightning_vamo.loop.tensors import fresh_copy, size_in_bytes, tensors_in

Evaluate = Callable[[Any, int], Tensor | None]

# Beyond this a perturbation costs next to nothing per batch.
MOST = 16

# Bytes that a group may take however small the model is.
ALWAYS = 2**24


class SweptBatch:
    """A batch of the plan, whose loss is a function of the parameters alone: same batch, randomness, and module each time.

    Args:
        batch: The batch, on the module's device, just loaded.
        position: Its place in the plan.
        evaluate: Gives the loss of a batch, or None where it is to be skipped.
        module: The module.
        state: The module's state, to which it returns after each evaluation.
        reshard: Lets go of parameters that FSDP2 has gathered for an evaluation.
    """

    def __init__(
        self,
        batch: Any,
        position: int,
        evaluate: Evaluate,
        module: LightningModule,
        state: ModuleState,
        reshard: Callable[[], None],
    ) -> None:
        self._batch = batch
        self.position = position
        self._evaluate = evaluate
        self._state = state
        self._reshard = reshard
        # A transfer hook may have left something on the module for the step to find.
        self._attributes = state.changed_attributes()
        self._restore()
        self._random = compat.rng_states(module.device)
        self.bytes = size_in_bytes(tensors_in(batch))
        """Memory that the batch's tensors take; 0 where none are found."""
        self.evaluations = 0
        """Forward passes of it so far."""
        self.skipped = batch is None
        """Whether ``training_step`` gave no loss."""
        self.epsilon = 0.0
        """Machine epsilon of the type that the loss came in."""
        self.origin = self.loss()
        """The loss where the parameters are now, at the snapshot."""

    def loss(self) -> Tensor | None:
        """The loss at the current parameters, shape ``()``; None if the batch is skipped."""
        if self.skipped:
            return None
        if self.evaluations > 0:  # else the batch has just been loaded, and the generators are there
            compat.set_rng_states(self._random)
        for module, attributes in self._attributes:
            vars(module).update(attributes)
        self.evaluations += 1
        # A copy, since a step may take its batch apart: `labels = batch.pop("labels")`, or `images /= 255`.
        try:
            value = self._evaluate(fresh_copy(self._batch), self.position)
        finally:
            self._reshard()
        self.skipped = value is None
        loss = None
        if value is not None:
            loss = scalar(value).clone()  # of what may be a tensor on the module, before that is put back
            self.epsilon = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
        self._restore()
        return loss

    def _restore(self) -> None:
        self._state.restore_tensors()
        self._state.restore_attributes()


def groups(batches: Iterator[SweptBatch], parameters: Sequence[Tensor]) -> Iterator[list[SweptBatch]]:
    """Gather batches as they are loaded.

    The tensors of a group take no more than half of the memory of the probed parameters, whose gradients have been freed, or
    than ``ALWAYS``, unless a single batch takes more. A batch in which no tensors are found may be of any size, so it is alone.

    Args:
        batches: Loads the batches.
        parameters: The probed parameters.

    Yields:
        The batches in their order, 1 to ``MOST`` at a time.
    """
    limit = max(size_in_bytes(iter(parameters)) / 2, ALWAYS)
    group: list[SweptBatch] = []
    held = 0
    for batch in batches:
        group.append(batch)
        held += batch.bytes
        # The next batch is taken to be of this one's size.
        if len(group) == MOST or batch.bytes == 0 or held + batch.bytes > limit:
            yield group
            group, held = [], 0
    if group:
        yield group


def probe(
    group: Sequence[SweptBatch],
    snapshot: Snapshot,
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    noise_samples: int = NOISE_SAMPLES,
) -> list[Row]:
    """Evaluate a group of batches at the perturbed points.

    Args:
        group: Batches that have been evaluated at the snapshot.
        snapshot: The snapshot, which the parameters hold before and after.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        noise_samples: How many of the plan's first batches to evaluate at twice the radius too.

    Returns:
        A row per batch.
    """
    given = {batch: batch.origin for batch in group if batch.origin is not None}
    losses: dict[SweptBatch, Tensor] = {}
    wide: dict[SweptBatch, Tensor] = {}
    if given:
        origins = torch.stack(list(given.values())).unsqueeze(-1)
        perturbed = perturbed_losses(partial(_losses, given), snapshot, directions, mu, difference)
        losses |= zip(given, torch.cat([origins, perturbed], dim=-1), strict=True)
    for index in range(min(directions.count, noise_samples)):
        sample = {b: o for b, o in given.items() if b.position < noise_samples and b.position % directions.count == index}
        if sample:
            values = perturbed_losses(partial(_losses, sample), snapshot, directions, 2 * mu, difference, [index])
            wide |= zip(sample, values, strict=True)
    return [
        Row(None, None, batch.evaluations, 0.0)
        if batch.skipped
        else Row(losses[batch], wide.get(batch), batch.evaluations, batch.epsilon)
        for batch in group
    ]


def _losses(batches: dict[SweptBatch, Tensor]) -> Tensor:
    """The losses at the current parameters; a batch that is skipped only now counts as zero."""
    losses = [(batch.loss(), origin) for batch, origin in batches.items()]
    return torch.stack([torch.zeros_like(origin) if loss is None else loss for loss, origin in losses])
