"""The state of a callback in a checkpoint."""

from dataclasses import dataclass
from typing import Any


@dataclass
class CallbackState:
    """The part of a checkpoint that belongs to a callback.

    Attributes:
        seed: Seed of the run; None if the run never began.
        totals: The totals of :class:`~lightning_vamo.loop.ledger.totals.Totals`.
        choice: The measurements for the choice of the number of probes; None if the number is not chosen by measurement.
        ranks: The state of each rank; empty before and after the training, and if there are no snapshots.
    """

    seed: int | None
    totals: dict[str, Any]
    choice: dict[str, Any] | None
    ranks: list[dict[str, Any]]
