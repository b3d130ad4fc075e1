"""How rows age: the same batches' slopes before and after some steps of training, along the same directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.noise import nested
from lightning_vamo.core.schedules.decision import removed_by_rows
from lightning_vamo.finder.held_out import FEWEST_BATCHES, BatchGradients, Gradients, HeldOut
from lightning_vamo.loop.plan.plan import Plan


@dataclass(frozen=True)
class Aging:
    r"""Slopes of held-out batches that wait for the weights to move, as rows do that are carried.

    Attributes:
        held: The held-out batches: the first of their epoch, on which the fit goes on to train.
        epoch: Number of batches of the epoch, after which a carried row is used.
        parameters: The trained parameters.
        directions: The directions.
        positions: Positions of the batches whose gradients were finite.
        rows: Their slopes at the first weights, in orthonormal coordinates, shape ``(n, q)``.
    """

    held: Plan
    epoch: int
    parameters: Sequence[Tensor]
    directions: ProbeDirections
    positions: list[int]
    rows: Tensor

    @classmethod
    def of(cls, seen: HeldOut, held: Plan, epoch: int, parameters: Sequence[Tensor], directions: ProbeDirections) -> "Aging":
        """Let the slopes wait that were seen along directions."""
        return cls(held, epoch, parameters, directions, list(seen.positions), seen.along)

    def explained(self, trainer: Trainer, module: LightningModule) -> Tensor | None:
        r"""The share of each direction's noise that rows of an epoch before would explain.

        What rows explain is taken to fall exponentially with their age, so of the squared correlation :math:`\rho^2` after
        :math:`n` of an epoch's :math:`K` batches :math:`\rho^{2K/n}` is left after the epoch.

        Args:
            trainer: The trainer, which has trained on the held-out batches since.
            module: Its module.

        Returns:
            The shares, in nested coordinates, shape ``(q,)``, float64; None if too few gradients were finite.
        """
        slopes: dict[int, Tensor] = {}

        def see(position: int, gradients: Gradients, start: float) -> None:
            slopes[position] = self.directions.project(gradients).double().cpu()

        BatchGradients(trainer, module, self.held, self.parameters, range(self.held.length), None).show(see)
        both = [index for index, position in enumerate(self.positions) if position in slopes]
        if len(both) < FEWEST_BATCHES // 2:
            return None
        turn = nested(self.directions)
        now = torch.stack([slopes[self.positions[index]] for index in both]) @ turn
        return _correlations(self.rows[both] @ turn, now) ** (self.epoch / self.held.length)


def _correlations(rows: Tensor, slopes: Tensor) -> Tensor:
    """Squared correlations, column by column, less what as many pairs would show by chance."""
    rows, slopes = rows - rows.mean(0), slopes - slopes.mean(0)
    scale = (rows.square().sum(0) * slopes.square().sum(0)).clamp(min=torch.finfo(torch.float64).tiny)
    squares = (rows * slopes).sum(0).square() / scale
    chance = 1 / (len(rows) - 1)
    shares: Tensor = ((squares - chance) / (1 - chance)).clamp(0, 1)
    return shares


def carried_share(explained: Tensor | None, spectrum: Sequence[float]) -> float | None:
    """The share of all noise that carried rows would remove.

    Args:
        explained: The share of each direction's noise that they explain; None if that is not known.
        spectrum: Share of the noise along each direction.

    Returns:
        The share; None if it is not known.
    """
    if explained is None:
        return None
    share = removed_by_rows(torch.tensor(spectrum, dtype=torch.float64), explained)
    return share if math.isfinite(share) else None
