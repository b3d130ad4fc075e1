"""Bounds for the rows of a table: a few batches with enormous gradients must not rule the corrections of all batches."""

import torch
from torch import Tensor

DEVIATIONS = 4.0
"""How many robust standard deviations an entry may lie from the median: one of 16,000 normal numbers lies further out."""

# A median absolute deviation is this many times smaller than the standard deviation of normal numbers.
_NORMAL = 1.4826

# The fewer rows there are, the less is known of their deviation: with this many rows the bound is twice as wide.
_FEW = 16


def bounded(rows: Tensor, used: Tensor, deviations: float = DEVIATIONS) -> Tensor:
    r"""Move each entry of the rows to within a few robust standard deviations of the median of its column.

    .. math:: |\delta_{k,j} - m_j| \le \kappa\,(1 + (16/K)^2) \cdot 1.4826\, \operatorname{median}_k |\delta_{k,j} - m_j|,
        \qquad m_j = \operatorname{median}_k \delta_{k,j}

    A table that is fixed before its rows are used, and is centred *after* the bounding, has mean zero: the corrected gradient
    is as unbiased as with the measured table. If most entries of a column are the same, as for a direction that few batches
    touch, the other entries determine the deviation.

    Args:
        rows: The table, shape ``(K, q)``.
        used: Which rows determine the median and the deviation, shape ``(K,)``, bool. The other rows are bounded too.
        deviations: :math:`\kappa`, more than 0.

    Returns:
        The table with the entries beyond the bounds moved to the bounds, shape ``(K, q)``. The host reads no number.
    """
    if not len(rows):
        return rows
    wide = torch.where(used.unsqueeze(1), rows.double(), torch.nan)
    median = _median(wide)
    away = (wide - median).abs()
    typical = _median(away)
    some = _median(torch.where(away > 0, away, torch.nan))
    scale = torch.where(typical > 0, typical, some) * _NORMAL * deviations * (1 + (_FEW / used.sum().double()) ** 2)
    # A scale that is not finite means that all entries are the same: there is nothing to bound.
    scale = torch.where(scale.isfinite(), scale, torch.inf)
    center = torch.where(median.isfinite(), median, 0.0)
    return torch.clamp(rows.double(), center - scale, center + scale).to(rows.dtype)


def _median(rows: Tensor) -> Tensor:
    """The median of each column without NaNs, as ``nanmedian`` gives it, which is not deterministic on a GPU."""
    known = rows.isnan().logical_not().sum(dim=0, keepdim=True)
    return rows.sort(dim=0).values.gather(0, ((known - 1) // 2).clamp(min=0)).squeeze(0)
