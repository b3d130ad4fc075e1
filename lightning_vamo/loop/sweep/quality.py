"""The quality of a sweep's probe differences: their size compared with their error, and the kind of the error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.core.probes.radius import Trend, trend_of
from lightning_vamo.loop.sweep.losses import Table


@dataclass(frozen=True)
class Quality:
    """The quality of probe differences: their error, and the kind of the error.

    Attributes:
        snr: Size of the probe differences relative to their own error: see :func:`quality_of`.
        trend: Whether the error of rounding or that of curvature is larger; None if neither stands out.
    """

    snr: float | None
    trend: Trend | None


def quality_of(table: Table, mu: float, difference: Difference, usable: Tensor) -> Quality:
    r"""Compare probe differences with their own error.

    .. math:: \text{snr} = \sqrt{\operatorname{mean}_{k,j} (\delta_{k,j} - \bar\delta_j)^2
        \Big/ \operatorname{mean}_i \bigl(\delta_i(2\mu) - \delta_i(\mu)\bigr)^2}

    A finite difference measures the slope, with two errors that change with :math:`\mu`: the rounding of the losses, and the
    curvature. So the difference between two radii shows the error at the smaller radius, to within a factor of two. The error
    is taken to be at least the rounding error of the losses' type: at a radius so short that losses change by a rounding step
    or not at all, a few batches may show no difference.

    Args:
        table: The losses.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        usable: Which directions count, shape ``(q,)``, bool.

    Returns:
        The ratio, and which error is larger. The ratio is about 1 if the differences are nothing but error, 0 if no loss
        changed at all, and None if it cannot be computed: fewer than two rows, no direction, or rows that are all the same.
    """
    given = table.weights > 0
    if int(given.sum()) < 2 or not bool(usable.any()):
        return Quality(None, None)
    deltas = probe_differences(table.losses, mu, difference).double()
    used = deltas[given][:, usable]
    signal = (used - used.mean(dim=0)).square().mean()
    if signal == 0:
        return Quality(None if used.any() else 0.0, None if used.any() else "rounding")
    up = _changes(table, table.wide, 2 * mu, deltas, difference, usable)
    down = _changes(table, table.narrow, mu / 2, deltas, difference, usable)
    if len(up) == 0:
        return Quality(None, None)
    # Two losses, each rounded to a multiple of about epsilon times itself.
    span = mu if difference == "forward" else 2 * mu
    rounding = (table.epsilon / span) ** 2 / 6 * table.losses[given, 0].double().square().mean()
    error = up.square().mean()
    snr = float((signal / torch.maximum(error, rounding)).sqrt())
    if rounding > error:
        return Quality(snr, "rounding")
    narrow = up[: len(down)].square().mean().sqrt() if len(down) else error
    return Quality(snr, trend_of(float(narrow), float(down.square().mean().sqrt())) if len(down) else None)


def _changes(table: Table, losses: Tensor, radius: float, deltas: Tensor, difference: Difference, usable: Tensor) -> Tensor:
    """The change of the first batches' finite probe differences with the radius, float64."""
    rows = torch.arange(len(losses), device=deltas.device)
    directions = rows % deltas.shape[1]
    other = probe_differences(torch.cat([table.losses[rows, :1], losses], dim=1), radius, difference)[:, 0].double()
    changes = (other - deltas[rows, directions])[(table.weights[rows] > 0) & usable[directions]]
    return changes[changes.isfinite()]
