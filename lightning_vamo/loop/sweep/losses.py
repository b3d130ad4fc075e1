"""The table that a sweep fills: a row of losses per batch, averaged over the ranks in one reduction, and its quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.errors import NonFiniteLossError, UnsupportedError

NOISE_SAMPLES = 8
"""How many batches, the first ones, are evaluated at twice the smoothing radius too."""


@dataclass(frozen=True)
class Row:
    """What one rank measured on one batch.

    Attributes:
        losses: As :func:`~lightning_vamo.core.probes.difference.probe_losses` orders them; None where ``training_step`` gave
            no loss.
        wide: The losses along one direction at twice the smoothing radius, of the first ``NOISE_SAMPLES`` batches.
        evaluations: Forward passes that it took.
        epsilon: Machine epsilon of the type that the losses came in; 0 where there is none.
    """

    losses: Tensor | None
    wide: Tensor | None
    evaluations: int
    epsilon: float


@dataclass(frozen=True)
class Table:
    """The rows of all batches.

    Attributes:
        losses: Mean over the ranks, shape ``(K, 1 + q)``, or ``(K, 1 + 2q)`` for central differences.
        own: This rank's, of the same shape.
        wide: Mean over the ranks, shape ``(min(K, NOISE_SAMPLES), 1)``, or ``(..., 2)``: row ``i`` is along direction
            ``i mod q``.
        weights: Samples of each batch over all ranks, shape ``(K,)``; 0 where there is no loss.
        snapshot_loss: The weighted mean of the losses at the snapshot.
        epsilon: Machine epsilon of the losses' type.
    """

    losses: Tensor
    own: Tensor
    wide: Tensor
    weights: Tensor
    snapshot_loss: float
    epsilon: float

    def usable(self, count: int) -> Tensor:
        """Which directions gave a finite loss for every batch.

        Args:
            count: ``q``.

        Returns:
            Shape ``(q,)``, bool.

        Raises:
            NonFiniteLossError: If a loss at the snapshot itself is not finite.
        """
        finite = self.losses.isfinite()
        if not bool(finite[:, 0].all()):
            batch = int((~finite[:, 0]).nonzero()[0])
            raise NonFiniteLossError(
                f"The training loss of batch {batch} is {float(self.losses[batch, 0])} at the snapshot: the training has"
                " diverged or the batch holds bad values. Lower the learning rate, clip gradients, or check the data. The"
                " weights are as before the sweep."
            )
        return finite[:, 1:].all(dim=0).view(-1, count).all(dim=0)

    def snr(self, mu: float, difference: Difference, usable: Tensor) -> float | None:
        r"""How far the probe differences stand out of their own error.

        .. math:: \sqrt{\operatorname{mean}_{k,j} (\delta_{k,j} - \bar\delta_j)^2
            \Big/ \operatorname{mean}_i \bigl(\delta_i(2\mu) - \delta_i(\mu)\bigr)^2}

        The rounding of the losses, and the curvature that a finite difference takes for slope, change with :math:`\mu`; the
        slope does not. So the difference of two radii shows the error at the smaller one, to within a factor of two. It is
        taken to be no less than what the rounding of the losses to their type makes of it: where the radius is so short that
        losses change by a rounding step or not at all, a few batches may show no difference.

        Args:
            mu: Smoothing radius.
            difference: ``"forward"`` or ``"central"``.
            usable: Which directions to look at.

        Returns:
            The ratio: about 1 where there is nothing but error, and 0 where no loss changed at all. None where nothing can be
            told: fewer than two rows, no direction, or rows that are all the same.
        """
        count = len(usable)
        given = self.weights > 0
        if int(given.sum()) < 2 or not bool(usable.any()):
            return None
        deltas = probe_differences(self.losses, mu, difference).double()
        rows = torch.arange(len(self.wide), device=deltas.device)
        wide = probe_differences(torch.cat([self.losses[rows, :1], self.wide], dim=1), 2 * mu, difference)[:, 0].double()
        errors = (wide - deltas[rows, rows % count])[given[rows] & usable[rows % count]]
        errors = errors[errors.isfinite()]
        if len(errors) == 0:
            return None
        used = deltas[given][:, usable]
        signal = (used - used.mean(dim=0)).square().mean()
        if signal == 0:
            return None if used.any() else 0.0
        span = mu if difference == "forward" else 2 * mu
        # Two losses, each rounded to a multiple of about epsilon times itself.
        rounding = (self.epsilon / span) ** 2 / 6 * self.losses[given, 0].double().square().mean()
        return float((signal / torch.maximum(errors.square().mean(), rounding)).sqrt())


def reduced(trainer: Trainer, rows: Sequence[Row], sizes: Sequence[int], difference: Difference) -> Table:
    """Average the rows and add up the weights over the ranks, in one reduction.

    Args:
        trainer: The trainer.
        rows: This rank's rows.
        sizes: Samples of each batch on this rank.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        The table, the same on every rank but for ``own``.

    Raises:
        UnsupportedError: If no batch gave a loss.
    """
    given = next((row.losses for row in rows if row.losses is not None), None)
    if given is None:
        raise UnsupportedError(
            "`training_step` returned None for every batch of the epoch, so there is no loss to probe: return a loss."
        )
    own = torch.stack([torch.zeros_like(given) if row.losses is None else row.losses for row in rows])
    missing = given.new_zeros(2 if difference == "central" else 1)
    wide = torch.stack([missing if row.wide is None else row.wide for row in rows[:NOISE_SAMPLES]])
    weights = own.new_tensor([0 if row.losses is None else size for row, size in zip(rows, sizes, strict=True)])
    weighted = (weights.double() @ own[:, 0].double()).to(own).reshape(1)
    parts = [own.reshape(-1), wide.reshape(-1), weights, weighted]
    packed = trainer.strategy.reduce(torch.cat(parts), reduce_op="sum")
    table, samples, total, loss = packed.split([len(part) for part in parts])
    world = trainer.world_size
    return Table(
        losses=table.view_as(own) / world,
        own=own,
        wide=samples.view_as(wide) / world,
        weights=total,
        snapshot_loss=float(loss / total.sum()),
        epsilon=max(row.epsilon for row in rows),
    )
