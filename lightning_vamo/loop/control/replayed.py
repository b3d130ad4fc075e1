"""Replay: an epoch trains on the same batches that a sweep has measured at the snapshot."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.control.bounds import bounded
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.drawn import Drawn, draw
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.measured import measure
from lightning_vamo.loop.control.probed import Probed, ProbedControl
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.sweep.sweep import Sweep


class Replayed(Probed):
    """A snapshot with the table of a sweep; the epochs train on the sweep's batches.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        drawn: The directions.
        plan: The batches that were swept.
        sweep: The result of the sweep.
        correction: Corrects the gradients of the steps: see :func:`table_correction`.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
    """

    kind = "replay"

    def __init__(
        self, epoch: int, drawn: Drawn, plan: Plan | None, sweep: Sweep, correction: Correction, logs: dict[str, float]
    ) -> None:
        super().__init__(epoch, drawn, correction, logs)
        self.plan = plan
        self.sweep: Sweep = sweep

    def fingerprint(self, row: int) -> int | None:
        """See :meth:`Snapshot.fingerprint`."""
        return self.sweep.fingerprints[row]

    def row_state(self, trainer: Any) -> dict[str, Any]:
        """See :meth:`Probed.row_state`."""
        return asdict(self.sweep)


def table_correction(here: Here, drawn: Drawn, sweep: Sweep) -> Correction:
    """The correction of gradients by the table of a sweep.

    Args:
        here: The present state of the run.
        drawn: The directions.
        sweep: The result of the sweep.

    Returns:
        The correction; if the sweep has dropped all directions, the coefficient is zero and nothing is corrected.
    """
    beta = drawn.beta if sweep.directions_dropped < drawn.directions.count else 0.0
    table, own_table = (drawn.directions.whiten(deltas) for deltas in (sweep.deltas, sweep.own))
    if here.settings.alpha == "adaptive":
        # If an entry is bounded, each rank's part gets the bound: their mean remains the table, and no part is an outlier.
        within = bounded(table, sweep.weights > 0)
        table, own_table = within, torch.where(within == table, own_table, within)
    control, own = (ControlVariate(deltas, sweep.weights, beta) for deltas in (table, own_table))
    return Correction(drawn.parameters, drawn.directions, control, own, here.learning.coefficient)


@dataclass(frozen=True)
class Replay(ProbedControl):
    """Sweep the coming epoch's batches at the snapshot, then train on the same batches: no step makes an extra pass.

    Args:
        every_n_epochs: Epochs from one snapshot with its sweep to the next, at least 1. In between, the batches keep their
            composition, and their order is reshuffled unless the data is read in sequence.

    Raises:
        InvalidArgumentError: If the number is not allowed.

    Example:
        >>> Replay(every_n_epochs=2)
        Replay(every_n_epochs=2)
    """

    every_n_epochs: int = 1

    kinds = ("replay",)
    records = "always"
    watches = True

    def __post_init__(self) -> None:
        check_whole("every_n_epochs", self.every_n_epochs)

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return epoch % self.every_n_epochs == 0

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return self.begins(epoch + 1)

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return True

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """See :meth:`Control.sweeps`."""
        return 1 / self.every_n_epochs

    def warn_of_changing_data(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_changing_data`."""
        advice.on_changing_data()

    def take(self, here: Here, before: Snapshot | None) -> Replayed | None:
        """See :meth:`Control.take`."""
        if here.learning.changing_data:
            return None
        drawn = draw(here, lambda: here.epoch_plan)
        if drawn is None:
            return None
        plan = here.epoch_plan
        measured = measure(here, drawn, plan)
        if measured is None:
            return None
        swept, logs = measured
        here.totals.snapshots += 1
        correction = table_correction(here, drawn, swept)
        return Replayed(here.trainer.current_epoch, drawn, plan, swept, correction, logs)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Replayed:
        """See :meth:`Control.restore`."""
        drawn, device = Drawn.again(here, state), here.trainer.strategy.root_device
        sweep = Sweep(**apply_to_collection(state["rows"], Tensor, lambda tensor: tensor.to(device)))
        return Replayed(state["epoch"], drawn, plan, sweep, table_correction(here, drawn, sweep), state["logs"])
