"""What a checkpoint holds of a callback."""

from dataclasses import dataclass
from typing import Any


@dataclass
class CallbackState:
    """The part of a checkpoint that belongs to a callback.

    Attributes:
        seed: Seed of the run; None if it never began.
        totals: The totals of :class:`~lightning_vamo.loop.ledger.totals.Totals`.
        choice: What has been measured to choose the number of probes by; None if it is not chosen.
        ranks: Where each rank stands; empty before and after the training, and where there are no snapshots.
    """

    seed: int | None
    totals: dict[str, Any]
    choice: dict[str, Any] | None
    ranks: list[dict[str, Any]]
