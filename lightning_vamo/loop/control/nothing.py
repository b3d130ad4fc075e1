"""The control of methods without a control variate."""

from dataclasses import dataclass
from typing import Any

from lightning_vamo.loop.control.base import Control, Here, Snapshot
from lightning_vamo.loop.plan.plan import Plan


@dataclass(frozen=True)
class Nothing(Control):
    """Subtracts nothing from the gradient."""

    kinds = ()
    records = "never"
    made_of = None

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return False

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return False

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return True

    def take(self, here: Here, before: Snapshot | None) -> None:
        """See :meth:`Control.take`."""

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """See :meth:`Control.restore`; never called, since there are no snapshots."""
        raise NotImplementedError
