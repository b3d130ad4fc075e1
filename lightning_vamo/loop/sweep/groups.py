"""Groups of the sweep's batches: as many as memory allows are held at once, so that a perturbation is paid once for all."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, perturbed_losses
from lightning_vamo.core.probes.point import Point
from lightning_vamo.loop.plan.tensors import size_in_bytes
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.losses import NOISE_SAMPLES, Row

# Beyond this a perturbation costs next to nothing per batch.
MOST = 16


# Bytes that a group may take however small the model is.
ALWAYS = 2**24


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
    point: Point,
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    noise_samples: int = NOISE_SAMPLES,
) -> list[Row]:
    """Evaluate a group of batches at the perturbed points.

    Args:
        group: Batches that have been evaluated at the snapshot.
        point: The snapshot, which the parameters hold before and after.
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
        perturbed = perturbed_losses(partial(_losses, given), point, directions, mu, difference)
        losses |= zip(given, torch.cat([origins, perturbed], dim=-1), strict=True)
    for index in range(min(directions.count, noise_samples)):
        sample = {b: o for b, o in given.items() if b.position < noise_samples and b.position % directions.count == index}
        if sample:
            values = perturbed_losses(partial(_losses, sample), point, directions, 2 * mu, difference, [index])
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
