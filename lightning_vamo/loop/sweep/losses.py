"""The table of a sweep's losses: a row for each batch, averaged over the ranks in one reduction."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.errors import NonFiniteLossError, UnsupportedError

WIDE_SAMPLES = 8
"""How many of the first batches are evaluated at twice the smoothing radius too."""

NARROW_SAMPLES = 4
"""How many of the first batches are evaluated at half of the smoothing radius too."""


@dataclass(frozen=True)
class Row:
    """The losses that one rank measured on one batch.

    Attributes:
        losses: The losses in the order of :func:`~lightning_vamo.core.probes.difference.probe_losses`; None if
            ``training_step`` gave no loss.
        wide: For the first ``WIDE_SAMPLES`` batches, the losses along one direction at twice the smoothing radius.
        narrow: For the first ``NARROW_SAMPLES`` batches, the losses along the same direction at half the radius.
        evaluations: Number of forward passes that the row took.
        epsilon: Machine epsilon of the losses' type; 0 if there is no loss.
    """

    losses: Tensor | None
    wide: Tensor | None = None
    narrow: Tensor | None = None
    evaluations: int = 0
    epsilon: float = 0.0


@dataclass(frozen=True)
class Table:
    """The rows of all batches.

    Attributes:
        losses: Mean over the ranks, shape ``(K, 1 + q)``, or ``(K, 1 + 2q)`` for central differences; zeros where a batch has
            no row.
        own: The losses of this rank, of the same shape.
        wide: Losses at twice the radius, mean over the ranks, shape ``(min(K, WIDE_SAMPLES), 1)``, or ``(..., 2)`` for central
            differences: row ``i`` is along direction ``i mod q``.
        narrow: Losses at half the radius, for ``min(K, NARROW_SAMPLES)`` batches, otherwise like ``wide``.
        weights: Number of samples of each batch over all ranks, shape ``(K,)``; 0 for a batch without a row, which gave no loss
            or a loss that is not finite at the snapshot.
        snapshot_loss: The weighted mean of the losses at the snapshot.
        not_finite: Number of batches whose loss at the snapshot is not finite.
        epsilon: Machine epsilon of the losses' type.
    """

    losses: Tensor
    own: Tensor
    wide: Tensor
    narrow: Tensor
    weights: Tensor
    snapshot_loss: float
    not_finite: int
    epsilon: float

    def usable(self, mu: float, difference: Difference) -> Tensor:
        """The directions that gave a finite probe difference for every batch with a row.

        Args:
            mu: Smoothing radius.
            difference: ``"forward"`` or ``"central"``.

        Returns:
            Shape ``(q,)``, bool.
        """
        deltas = probe_differences(self.losses, mu, difference)
        sides = self.losses[:, 1:].isfinite().view(len(deltas), -1, deltas.shape[1]).all(dim=1)
        return (sides & deltas.isfinite()).all(dim=0)


def reduced(trainer: Trainer, rows: Sequence[Row], sizes: Sequence[int], difference: Difference) -> Table:
    """Average the rows and add up the weights over the ranks, in one reduction.

    Args:
        trainer: The trainer.
        rows: This rank's rows.
        sizes: Samples of each batch on this rank.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        The table, the same on every rank except for ``own``.

    Raises:
        NonFiniteLossError: If no batch has a finite loss at the snapshot.
        UnsupportedError: If no batch gave a loss.
    """
    given = next((row.losses for row in rows if row.losses is not None), None)
    if given is None:
        raise UnsupportedError(
            "`training_step` returned None for every batch of the epoch, so there is no loss to probe: return a loss from"
            " `training_step`, and from `probe_loss` if the module defines it."
        )
    own = torch.stack([torch.zeros_like(given) if row.losses is None else row.losses for row in rows])
    missing = given.new_zeros(2 if difference == "central" else 1)
    wide = torch.stack([missing if row.wide is None else row.wide for row in rows[:WIDE_SAMPLES]])
    narrow = torch.stack([missing if row.narrow is None else row.narrow for row in rows[:NARROW_SAMPLES]])
    weights = own.new_tensor([0 if row.losses is None else size for row, size in zip(rows, sizes, strict=True)])
    finite = own[:, 0].isfinite()
    weighted = weights * torch.where(finite, own[:, 0], 0.0)
    parts = [own.reshape(-1), wide.reshape(-1), narrow.reshape(-1), weights, (~finite).to(own), weighted]
    packed = trainer.strategy.reduce(torch.cat(parts), reduce_op="sum")
    table, doubled, halved, total, bad, losses = packed.split([len(part) for part in parts])
    known = (total > 0) & (bad == 0)
    if not bool(known.any()):
        raise NonFiniteLossError(
            f"No batch of the epoch has a finite training loss at the snapshot; the first loss is {float(own[0, 0])}. The"
            " training has diverged, or the data holds bad values: lower the learning rate, clip gradients, or check the data."
            " The weights are as before the sweep."
        )
    world, total = trainer.world_size, torch.where(known, total, 0.0)
    return Table(
        losses=torch.where(known[:, None], table.view_as(own), 0.0) / world,
        own=torch.where(known[:, None], own, 0.0),
        wide=doubled.view_as(wide) / world,
        narrow=halved.view_as(narrow) / world,
        weights=total,
        snapshot_loss=float(losses[known].double().sum() / total.double().sum()),
        not_finite=int((bad > 0).sum()),
        epsilon=max(row.epsilon for row in rows),
    )
