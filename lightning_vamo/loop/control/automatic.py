"""The control variate that fits the training data."""

from dataclasses import dataclass
from typing import Any

from lightning_vamo.loop.control.base import Control, Here, Snapshot
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.control.replayed import Replay
from lightning_vamo.loop.plan.plan import Plan, has_plan


@dataclass(frozen=True)
class Auto(Control):
    """Replay where the batches of an epoch can be told before it; else recompute."""

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
        """See :meth:`Control.sweeps`: of data whose batches can be told."""
        return Replay().sweeps(steps, twice=twice)

    def take(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """See :meth:`Control.take`."""
        control: Control = Replay() if has_plan(here.trainer) else Recompute()
        return control.take(here, before)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """See :meth:`Control.restore`."""
        control: Control = Replay() if state["kind"] in Replay.kinds else Recompute()
        return control.restore(here, state, plan)
