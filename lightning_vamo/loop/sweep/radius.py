"""The search for a smoothing radius, on the first batches of a sweep."""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, perturbed_losses, probe_differences
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import LADDER, best_radius
from lightning_vamo.loop.sweep.agree import total
from lightning_vamo.loop.sweep.batch import SweptBatch

SAMPLES = 4
"""How many pairs of a batch and a direction are evaluated at each radius, and at twice the radius."""

EVALUATIONS = 2 * SAMPLES * len(LADDER)
"""How many evaluations of a batch a search takes at most, with forward differences."""


class RadiusSearch:
    """Finds the radius at which the probe differences of a few batches change least, relatively, if the radius doubles.

    Args:
        trainer: The trainer; all ranks search together, each rank over its own batches.
        group: Batches that have been evaluated at the snapshot.
        point: The snapshot, which the parameters hold before and after the search.
        directions: The probe directions.
        difference: ``"forward"`` or ``"central"``.
    """

    def __init__(
        self,
        trainer: Trainer,
        group: Sequence[SweptBatch],
        point: Point,
        directions: ProbeDirections,
        difference: Difference,
    ) -> None:
        self._trainer = trainer
        self._point = point
        self._directions = directions
        self._difference = difference
        pairs = dict.fromkeys((group[i % len(group)], i % directions.count) for i in range(SAMPLES * directions.count))
        self._pairs = list(pairs)[:SAMPLES]
        self._slopes: dict[float, Tensor] = {}

    def best(self, start: float) -> float:
        """Search for the best radius, beginning with a given radius.

        Args:
            start: The radius.

        Returns:
            The best radius that was tried, the same on every rank.
        """
        return best_radius(self._errors, start)

    def _errors(self, mu: float) -> tuple[float, float]:
        """Root mean square of the error at a radius over the samples of all ranks, absolute and relative to the differences."""
        slopes = self._at(mu)
        change = self._at(2 * mu) - slopes
        origins = self._origins()
        # The error is at least the rounding error of the losses' type: see `quality_of`.
        epsilon = max(batch.epsilon for batch, _ in self._pairs)
        span = mu if self._difference == "forward" else 2 * mu
        rounding = (epsilon / span) ** 2 / 6 * origins.square()
        used = origins.isfinite()
        sums = torch.stack((torch.maximum(change.square(), rounding)[used].sum(), slopes[used].square().sum()))
        error, square = (math.sqrt(value) if value >= 0 else math.nan for value in total(self._trainer, sums).tolist())
        return error, error / square if square else math.inf

    def _origins(self) -> Tensor:
        origins = [math.nan if batch.origin is None else batch.origin.double() for batch, _ in self._pairs]
        return torch.stack([torch.as_tensor(origin, device=self._trainer.strategy.root_device) for origin in origins])

    def _at(self, mu: float) -> Tensor:
        """Probe differences of the samples at a radius, shape ``(samples,)``, float64."""
        if mu not in self._slopes:
            slopes = [self._slope(batch, index, mu) for batch, index in self._pairs]
            self._slopes[mu] = torch.stack(slopes).double()
        return self._slopes[mu]

    def _slope(self, batch: SweptBatch, index: int, mu: float) -> Tensor:
        losses = perturbed_losses(batch.visit, self._point, self._directions, mu, self._difference, [index])
        origin = losses.new_full((1,), math.nan) if batch.origin is None else batch.origin.reshape(1)
        return probe_differences(torch.cat([origin.to(losses), losses]), mu, self._difference)[0]
