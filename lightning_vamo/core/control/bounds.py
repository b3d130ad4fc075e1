"""Bounds for the rows of a table: a few batches with enormous gradients must not rule the corrections of all."""

import torch
from torch import Tensor

DEVIATIONS = 4.0
"""How many robust standard deviations from the median an entry may lie: one of 16,000 normal numbers lies further out."""

# A median absolute deviation is this many times smaller than the standard deviation of normal numbers.
_NORMAL = 1.4826

# The fewer rows there are, the less is known of their deviation: with this many the bound is twice as wide.
_FEW = 16


def bounded(rows: Tensor, used: Tensor, deviations: float = DEVIATIONS) -> Tensor:
    r"""Rows whose entries lie no further from the median of their column than a few robust standard deviations.

    .. math:: |\delta_{k,j} - m_j| \le \kappa\,(1 + (16/K)^2) \cdot 1.4826\, \operatorname{median}_k |\delta_{k,j} - m_j|,
        \qquad m_j = \operatorname{median}_k \delta_{k,j}

    A table that is fixed before its rows are used, and is centred *after* it was bounded, has mean zero: the corrected
    gradient is as unbiased as with the table as it was measured. A column of which most entries are the same, as of a
    direction that few batches touch, is measured by those that are not.

    Args:
        rows: The table, shape ``(K, q)``.
        used: Which rows count, shape ``(K,)``, truth values. Others are bounded too.
        deviations: :math:`\kappa`, more than 0.

    Returns:
        The table, the entries beyond the bounds moved to the bounds, shape ``(K, q)``. Nothing is read on the host.
    """
    if not len(rows):
        return rows
    wide = torch.where(used.unsqueeze(1), rows.double(), torch.nan)
    median = wide.nanmedian(dim=0).values
    away = (wide - median).abs()
    typical = away.nanmedian(dim=0).values
    some = torch.where(away > 0, away, torch.nan).nanmedian(dim=0).values
    scale = torch.where(typical > 0, typical, some) * _NORMAL * deviations * (1 + (_FEW / used.sum().double()) ** 2)
    # Without a scale all entries are the same.
    scale = torch.where(scale.isfinite(), scale, torch.inf)
    center = torch.where(median.isfinite(), median, 0.0)
    return torch.clamp(rows.double(), center - scale, center + scale).to(rows.dtype)
