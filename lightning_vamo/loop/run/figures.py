"""Figures of an epoch that sums over its steps give."""

import torch

from lightning_vamo.core.small import tensor_of
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.run.parts import Sums


def mean_factor(sums: Sums, snapshot: Snapshot | None) -> dict[str, float]:
    """The mean effective coefficient of the epoch's steps.

    Args:
        sums: The sums over the steps.
        snapshot: The snapshot that corrects the steps; None if there is none.

    Returns:
        The figure by name, 0 if the snapshot has corrected no step, as in an epoch that fills a table; nothing without both.
    """
    if not sums.steps:
        return {} if snapshot is None else {"alpha": 0.0}
    return {"alpha": float(torch.as_tensor(sums.factors).mean()) / sums.steps}


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
