"""Groups of the sweep's batches: all batches of a group are evaluated at a perturbed point before the next point is set."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, perturbed_losses
from lightning_vamo.core.probes.point import Point
from lightning_vamo.loop.plan.tensors import size_in_bytes
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.losses import NARROW_SAMPLES, WIDE_SAMPLES, Row

# The most batches in a group: with more batches, perturbing the weights costs next to nothing per batch already.
MOST = 16

# Bytes that a group may take even if the model is small.
ALWAYS = 2**24


def groups(
    batches: Iterator[SweptBatch], parameters: Sequence[Tensor], agree: Callable[[int], int] | None = None
) -> Iterator[list[SweptBatch]]:
    """Gather batches into groups as they are loaded.

    The tensors of a group take no more than half of the memory of the probed parameters, whose gradients have been freed, or
    than ``ALWAYS`` if that is more, unless a single batch takes more. A batch in which no tensors are found may have any size,
    so this batch is a group by itself.

    Args:
        batches: Loads the batches.
        parameters: The probed parameters.
        agree: Gives the least of a number over the ranks; None on a single rank. Several ranks have to form the same groups, so
            the first batch of a group sets the size of the group; a larger batch later in the group takes more memory.

    Yields:
        The batches in their order, 1 to ``MOST`` at a time.
    """
    limit = max(size_in_bytes(iter(parameters)) / 2, ALWAYS)
    group: list[SweptBatch] = []
    largest, size = 0, MOST
    for batch in batches:
        group.append(batch)
        largest = max(largest, batch.bytes)
        fitting = 1 if batch.bytes == 0 else max(1, min(MOST, int(limit // largest)))
        if agree is None:
            size = fitting
        elif len(group) == 1:
            size = agree(fitting)
        if len(group) >= size:
            yield group
            group = []
    if group:
        yield group


def probe(
    group: Sequence[SweptBatch],
    point: Point,
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    *,
    samples: bool = True,
) -> list[Row]:
    """Evaluate a group of batches at the perturbed points.

    Args:
        group: Batches that have been evaluated at the snapshot.
        point: The snapshot, which the parameters hold before and after the call.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        samples: Whether to evaluate the first batches of the plan at other radii too.

    Returns:
        A row per batch.
    """
    visited = [batch for batch in group if batch.visits]
    losses: dict[SweptBatch, Tensor] = {}
    wide: dict[SweptBatch, Tensor] = {}
    narrow: dict[SweptBatch, Tensor] = {}
    if visited:
        perturbed = perturbed_losses(partial(_losses, visited), point, directions, mu, difference)
        origins = torch.stack([_origin(batch) for batch in visited]).unsqueeze(-1)
        losses |= zip(visited, torch.cat([origins.to(perturbed), perturbed], dim=-1), strict=True)
    for found, most, radius in ((wide, WIDE_SAMPLES, 2 * mu), (narrow, NARROW_SAMPLES, mu / 2)):
        for index in range(min(directions.count, most) if samples else 0):
            sample = [b for b in visited if b.position < most and b.position % directions.count == index]
            if sample:
                values = perturbed_losses(partial(_losses, sample), point, directions, radius, difference, [index])
                found |= zip(sample, values, strict=True)
    return [
        Row(None, evaluations=batch.evaluations)
        if batch.skipped
        else Row(losses[batch], wide.get(batch), narrow.get(batch), batch.evaluations, batch.epsilon)
        for batch in group
    ]


def _losses(batches: Sequence[SweptBatch]) -> Tensor:
    return torch.stack([batch.visit() for batch in batches])


def _origin(batch: SweptBatch) -> Tensor:
    return batch.none if batch.origin is None else batch.origin
