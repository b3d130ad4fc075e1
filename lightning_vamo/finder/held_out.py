"""Statistics of held-out gradients."""

import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.efficiency import batch_factor, efficiency, work_factor
from lightning_vamo.core.noise import GradientMoments, nested, noise_along, ratio, removed
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.finder.finding import ProbeFigures
from lightning_vamo.loop.ledger.clocks import now
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.sweep.gradients import differentiate

FEWEST_BATCHES = 8
"""The smallest number of gradients that say something about their noise."""


RANDOM_BATCHES = 8
"""How many held-out gradients are projected on random directions too; the directions are drawn again for each gradient."""


MOST_REMOVED = 0.999
"""The largest share of the noise whose removal a few dozen gradients can show."""


Gradients = list[Tensor | None]


@dataclass(frozen=True)
class BatchGradients:
    """The gradients of some batches of a plan, without gradients that are not finite: the optimizer skips their steps."""

    trainer: Trainer
    module: LightningModule
    plan: Plan
    parameters: Sequence[Tensor]
    positions: range
    advance: Callable[[], object] | None

    def show(self, see: Callable[[int, Gradients, float], None]) -> None:
        """Call ``see`` for each finite gradient, with the batch's position and the time at which the batch was requested."""

        def finite(position: int, gradients: Gradients, start: float) -> None:
            if self.advance is not None:
                self.advance()
            if all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients):
                see(position, gradients, start)

        with closing(self._batches()) as batches:
            differentiate(self.trainer, self.module, batches, self.parameters, finite)

    def _batches(self) -> Generator[tuple[int, Any]]:
        with self.plan.loaded() as batches:
            yield from itertools.islice(enumerate(batches), self.positions.start, self.positions.stop)


class HeldOut:
    """Statistics of held-out gradients, from which no direction was learned.

    Args:
        learned: Learned directions.
        random: Random directions, as many as ``learned``.
        others: The mean of the gradients that the directions were learned from.
        module: The module; the clock waits for its device.
    """

    def __init__(
        self, learned: ProbeDirections, random: ProbeDirections, others: GradientMoments, module: LightningModule
    ) -> None:
        self.positions: list[int] = []
        self.products: list[Tensor] = []
        self.moments = GradientMoments(others.mean)
        self._learned, self._random, self._others, self._module = learned, random, others, module
        self._along: list[Tensor] = []
        self._chance: list[Tensor] = []
        self._times: list[float] = []

    def __call__(self, position: int, gradients: Gradients, start: float) -> None:
        """Count the gradient of a held-out batch."""
        self._times.append(now(self._module.device) - start)
        self.positions.append(position)
        self.products.append(self._others.product(gradients))
        self.moments.observe(gradients)
        self._along.append(self._learned.project(gradients).double().cpu())
        if len(self._chance) < RANDOM_BATCHES:
            self._chance.append(self._random.project(gradients).double().cpu())

    @property
    def along(self) -> Tensor:
        """Coordinates of the gradients along the learned directions, shape ``(n, q)``, float64."""
        return torch.stack(self._along)

    @property
    def seconds(self) -> float:
        """Seconds of a training step; the first step does not count, since it may wait for workers to start."""
        return sum(self._times[1:]) / len(self._times[1:])

    def figures(
        self, rows: Tensor | None, forward: float, difference: Difference, sweeps: float
    ) -> tuple[tuple[float, ...], tuple[ProbeFigures, ...]]:
        """The noise that probes remove.

        Args:
            rows: A sweep's probe differences, in the coordinates of :meth:`ProbeDirections.project`, a row for each gradient.
                None if the sweep saw other batches: then exact slopes stand for rows that each step recomputes.
            forward: Time of a sweep's forward pass, relative to the time of a training step.
            difference: ``"forward"`` or ``"central"``.
            sweeps: Sweeps per epoch, on average.

        Returns:
            The spectrum, and the figures for 1, 2, 4 and so on probes.
        """
        turn, whole, chance = nested(self._learned), self.moments.squares, torch.stack(self._chance)
        along = self.along @ turn
        rows = along if rows is None else rows @ turn
        spectrum, _ = ratio(noise_along(along).square(), whole)
        random, _ = ratio(removed(chance, chance), whole[: len(chance) - 1])
        held, held_error = ratio(removed(along, along), whole)
        gone, gone_error = ratio(removed(along, rows), whole)
        most = self._learned.count
        capped = gone.clamp(max=MOST_REMOVED)
        work = work_factor(most, forward, difference, sweeps)[1:]
        columns = (
            random,
            held,
            held_error,
            gone,
            gone_error,
            batch_factor(capped),
            work,
            efficiency(capped, forward, difference, sweeps)[1:],
        )
        counts = sorted({2**power for power in range(most.bit_length())} | {most})
        figures = [ProbeFigures(count, *(float(column[count - 1]) for column in columns)) for count in counts]
        return tuple(spectrum.tolist()), tuple(figures)
