"""Choose the control variate that fits the training data."""

from dataclasses import dataclass
from typing import Any

from lightning_vamo.loop import compat
from lightning_vamo.loop.control.base import Control, Here, Snapshot
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.plan.loadable import obstacles
from lightning_vamo.loop.plan.plan import Plan, has_plan


@dataclass(frozen=True)
class Auto(Control):
    """Replay if an epoch's batches are known in advance and are the same when loaded again; otherwise, recompute."""

    kinds = (*Replay.kinds, *Recompute.kinds)
    records = "where possible"
    watches = True

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return True

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return True

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return True

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """See :meth:`Control.sweeps`; the number for data whose batches are known in advance."""
        return Replay().sweeps(steps, twice=twice)

    def warn_of_changing_data(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_changing_data`."""
        advice.on_changing_data("`control='auto'` recomputes rows from now on, which takes 1 + q forward passes per step.")

    def take(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """See :meth:`Control.take`."""
        for reason in obstacles(compat.train_loader(here.trainer)):
            outcome = "so `control='auto'` recomputes rows, which takes 1 + q forward passes per step"
            here.advice.on_unknown_batches(f"{reason}, {outcome}.")
        replays = has_plan(here.trainer) and not here.learning.changing_data
        control: Control = Replay() if replays else Recompute()
        return control.take(here, before)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """See :meth:`Control.restore`."""
        control: Control = Replay() if state["kind"] in Replay.kinds else Recompute()
        return control.restore(here, state, plan)
