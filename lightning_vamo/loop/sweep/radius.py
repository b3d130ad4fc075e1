"""The search for a smoothing radius, on the first batches of a sweep."""

import math
from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, losses_at, probe_differences
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

    def best(self, start: float) -> float:
        """Search for the best radius, beginning with a given radius.

        Args:
            start: The radius.

        Returns:
            The best radius that was tried, the same on every rank.
        """
        return best_radius(self._errors, start)

    def _errors(self, radii: Sequence[float]) -> list[tuple[float, float]]:
        """At each radius the error, and the error relative to the differences: root mean squares over all samples."""
        origins = self._origins()
        slopes, doubled = self._slopes([*radii, *(2 * mu for mu in radii)], origins).chunk(2, dim=1)
        # The error is at least the rounding error of the losses' type: see `quality_of`.
        epsilon = max(batch.epsilon for batch, _ in self._pairs)
        spans = slopes.new_tensor(radii) * (1 if self._difference == "forward" else 2)
        rounding = (epsilon / spans).square() / 6 * origins.square()
        errors = torch.maximum((doubled - slopes).square(), rounding)
        used = origins[:, 0].isfinite()
        sums = total(self._trainer, torch.stack((errors[used].sum(0), slopes[used].square().sum(0))))
        pairs = sums.sqrt().T.tolist()
        return [(error, error / size if size else math.inf) for error, size in pairs]

    def _origins(self) -> Tensor:
        """Losses of the samples at the snapshot, shape ``(samples, 1)``, float64; NaN for a batch without a loss."""
        origins = [math.nan if batch.origin is None else batch.origin.double() for batch, _ in self._pairs]
        return torch.stack([torch.as_tensor(origin, device=self._trainer.strategy.root_device) for origin in origins])[:, None]

    def _slopes(self, radii: Sequence[float], origins: Tensor) -> Tensor:
        """Probe differences of the samples at the radii, shape ``(samples, len(radii))``, float64."""
        distances = [*radii, *(-mu for mu in radii)] if self._difference == "central" else radii
        losses = [
            losses_at(batch.visit, self._point, self._directions, [(index, distance) for distance in distances])
            for batch, index in self._pairs
        ]
        table = torch.cat([origins, torch.stack(losses).double()], dim=1)
        return probe_differences(table, table.new_tensor(radii), self._difference)
