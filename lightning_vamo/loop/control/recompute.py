"""The setting ``control=Recompute(...)``: when a snapshot is taken, and how long its rows last."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.drawn import Drawn, draw
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.measured import measure, radius
from lightning_vamo.loop.control.probed import ProbedControl
from lightning_vamo.loop.control.recomputed import Center, Recomputed
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.plan.plan import Plan, has_plan
from lightning_vamo.loop.plan.reread import Swept, second_reading


@dataclass(frozen=True)
class Recompute(ProbedControl):
    """Keep the snapshot's weights, and evaluate the ``1 + q`` losses of each step's own batch at these weights.

    Recomputed rows are for data that does not come twice: streams, and random augmentation.

    Args:
        every_n_epochs: Epochs from one snapshot to the next, at least 1; by default 1.
        every_n_train_steps: Optimizer steps from one snapshot to the next, the paper's ``m``, at least 1; in place of epochs.

    Raises:
        InvalidArgumentError: If a number is not allowed, or if both are given.

    Example:
        >>> Recompute(every_n_train_steps=100)
        Recompute(every_n_epochs=None, every_n_train_steps=100)
    """

    every_n_epochs: int | None = None
    every_n_train_steps: int | None = None

    kinds = ("recompute",)
    records = "where possible"

    def __post_init__(self) -> None:
        for name in ("every_n_epochs", "every_n_train_steps"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), "or None")
        if self.every_n_epochs is not None and self.every_n_train_steps is not None:
            raise InvalidArgumentError(
                f"`every_n_train_steps={self.every_n_train_steps}` and `every_n_epochs={self.every_n_epochs}` both say when to"
                " take a snapshot: keep one of the two."
            )

    @property
    def epochs(self) -> int:
        """Epochs from a snapshot to the next, if snapshots are timed by epochs."""
        return self.every_n_epochs or 1

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return self.every_n_train_steps is None and epoch % self.epochs == 0

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return self.begins(epoch + 1)

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return True

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """See :meth:`Control.sweeps`; a batch is probed in its step, and in the sweep for the mean if there is one."""
        if not twice:
            return 1.0
        return 1 + (1 / self.epochs if self.every_n_train_steps is None else steps / self.every_n_train_steps)

    def take(self, here: Here, before: Snapshot | None) -> Recomputed | None:
        """See :meth:`Control.take`."""
        batches = functools.cache(lambda: swept_batches(here))
        drawn = draw(here, batches)
        if drawn is None:
            return None
        period, plan, (mu, search) = self._period(here), batches(), radius(here, drawn.directions.dimension)
        center = Center(RecomputedControlVariate(drawn.beta), mu, period, unknown=True, search=search)
        sweep, logs = None, {"mu": mu}
        if plan is not None:
            measured = measure(here, drawn, plan.without_replacement(seeded(drawn.seed)))
            if measured is None:
                return None
            sweep, logs = measured
            mean = drawn.directions.whiten(ControlVariate(sweep.deltas, sweep.weights, drawn.beta).mean)
            usable = sweep.deltas.any(dim=0)  # the columns of dropped directions are zero
            center = Center(RecomputedControlVariate(drawn.beta, mean), sweep.mu, period, usable)
        here.totals.snapshots += 1
        snapshot = _recomputed(here, drawn, center, logs, here.trainer.current_epoch)
        snapshot.sweep = sweep
        return snapshot

    def _period(self, here: Here) -> int | None:
        """The number of optimizer steps until the next snapshot; None if epochs have no known length."""
        if self.every_n_train_steps is not None:
            return self.every_n_train_steps
        steps = here.steps_per_epoch * self.epochs
        if math.isfinite(steps):
            return math.ceil(steps)
        if here.settings.alpha == "linear-decay":
            raise UnsupportedError(
                "`alpha='linear-decay'` falls over the steps of a snapshot, but the training data has no length, so the number"
                " of steps is not known: set control=Recompute(every_n_train_steps=...), or another `alpha`."
            )
        return None

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Recomputed:
        """See :meth:`Control.restore`."""
        drawn, device = Drawn.again(here, state), here.trainer.strategy.root_device
        rows = apply_to_collection(state["rows"], Tensor, lambda tensor: tensor.to(device))
        origin = rows.pop("origin")
        control = RecomputedControlVariate.of(rows.pop("control"))
        control.beta = drawn.beta
        return _recomputed(here, drawn, Center(control=control, **rows), state["logs"], state["epoch"], origin)


def _recomputed(
    here: Here, drawn: Drawn, center: Center, logs: dict[str, float], epoch: int, origin: Sequence[Tensor] | None = None
) -> Recomputed:
    correction = Correction(drawn.parameters, drawn.directions, center.control, None, here.learning.coefficient)
    return Recomputed(epoch, drawn, center, compat.train_loader(here.trainer), correction, logs, origin)


def swept_batches(here: Here) -> Swept | None:
    """The epoch's plan, or another reading of the data; None if the data cannot be read twice."""
    return here.epoch_plan if here.plan or has_plan(here.trainer) else second_reading(here.trainer)
