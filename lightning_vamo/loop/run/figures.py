"""Figures of an epoch that sums over its steps give."""

import torch

from lightning_vamo.core.small import tensor_of
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.run.parts import Sums


def mean_factor(sums: Sums) -> dict[str, float]:
    """The mean effective coefficient of the epoch's steps.

    Args:
        sums: The sums over the steps.

    Returns:
        The figure by name; nothing if no step was corrected.
    """
    return {"alpha": float(torch.as_tensor(sums.factors).mean()) / sums.steps} if sums.steps else {}


def removed(sums: Sums, snapshot: Snapshot | None, totals: Totals) -> dict[str, float]:
    """The share of the gradient's second moment that the epoch's corrections removed; counted, and the sums begin anew.

    Args:
        sums: The sums over the steps.
        snapshot: The snapshot that corrected the steps.
        totals: The totals that count it.

    Returns:
        The figure by name; nothing if no step was corrected.
    """
    moments, sums.moments = sums.moments, None
    if moments is None:
        return {}
    total = tensor_of(moments) if snapshot is None else snapshot.total(tensor_of(moments))
    before, gone = total.tolist()
    totals.add_moments(before, gone)
    return {"variance_removed": gone / before if before else 0.0}
