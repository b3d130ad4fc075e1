"""Carried rows: each step averages its row with its own slopes, and the next epoch uses the new row."""

from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.control.carried import DECAY, CarriedRows
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.drawn import Drawn, draw
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.measured import measure
from lightning_vamo.loop.control.probed import Probed, ProbedControl
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.parameters import same_tensors
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.sweep.agree import check_batches


class Carried(Probed):
    """A snapshot whose table lasts many epochs; a sweep, or an epoch of plain training, fills the table first.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        drawn: The directions.
        plan: The batches that the rows belong to.
        table: The rows.
        correction: Corrects the gradients of the steps with ``table``.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
    """

    kind = "carry"

    def __init__(
        self, epoch: int, drawn: Drawn, plan: Plan | None, table: CarriedRows, correction: Correction, logs: dict[str, float]
    ) -> None:
        super().__init__(epoch, drawn, correction, logs)
        self.plan = plan
        self.table = table

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """See :meth:`Snapshot.begin_epoch`."""
        self.table.begin_epoch()
        return None if self.plan is None else self.plan.again(generator, self.table.group)

    def fits(self, accumulated: int) -> bool:
        """See :meth:`Snapshot.fits`; accumulation may change between two epochs."""
        return self.table.group == accumulated

    def row_state(self, trainer: Any) -> dict[str, Any]:
        """See :meth:`Probed.row_state`."""
        return self.table.state_dict()


@dataclass(frozen=True)
class Carry(ProbedControl):
    """Let each step refresh its row from the gradient that the step computes anyway.

    Rows belong to batches, so the batches keep their composition from epoch to epoch; their order is reshuffled unless the
    data is read in sequence.

    Args:
        sweep_every_n_epochs: Epochs from one sweep to the next, at least 2. With None, the default, there is no sweep: an epoch
            of training fills the table, and no step or epoch makes an extra pass.
        turn_every_n_epochs: Epochs from one change of learned directions to the next, at least 1; the rows are converted to the
            new directions.
        decay: A step keeps the mean of its old row and its fresh row, and the old row has this weight, in ``[0, 1)``. 0 keeps
            the fresh row alone, as SAGA does.

    Raises:
        InvalidArgumentError: If a number is not allowed.

    References:
        Defazio et al., "SAGA", arXiv:1407.0202, whose table keeps fresh rows alone.

    Example:
        >>> Carry(sweep_every_n_epochs=5)
        Carry(sweep_every_n_epochs=5, turn_every_n_epochs=1, decay=0.5)
    """

    sweep_every_n_epochs: int | None = None
    turn_every_n_epochs: int = 1
    decay: float = DECAY

    kinds = ("carry",)
    records = "always"

    def __post_init__(self) -> None:
        check_whole("turn_every_n_epochs", self.turn_every_n_epochs)
        if isinstance(self.decay, bool) or not isinstance(self.decay, Real) or not 0 <= self.decay < 1:
            raise InvalidArgumentError(
                f"`decay` must be a number, at least 0 and less than 1, got {self.decay!r}: 0 keeps the fresh row of a step"
                " alone, and 0.5 the mean of its old row and its fresh row."
            )
        if self.sweep_every_n_epochs is not None:
            check_whole("sweep_every_n_epochs", self.sweep_every_n_epochs, "or None")
            if self.sweep_every_n_epochs == 1:
                raise InvalidArgumentError(
                    "`sweep_every_n_epochs` must be 2 or more, or None, got 1: a sweep in every epoch would replace all rows"
                    " before a step could use a carried row. Set control='replay' for a sweep in every epoch."
                )

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return self.replaces(epoch) or epoch % self.turn_every_n_epochs == 0

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return self.replaces(epoch + 1)

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return self.sweep_every_n_epochs is not None and epoch % self.sweep_every_n_epochs == 0

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """See :meth:`Control.sweeps`."""
        return 0.0 if self.sweep_every_n_epochs is None else 1 / self.sweep_every_n_epochs

    def warn_of_reload(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_reload`."""
        if self.sweep_every_n_epochs is None:
            advice.on_reloaded_rows()

    def take(self, here: Here, before: Snapshot | None) -> Carried | None:
        """See :meth:`Control.take`."""
        sweeps = self.sweep_every_n_epochs is not None and not isinstance(before, Carried)
        last = before if isinstance(before, Carried) else None
        drawn = draw(here, lambda: here.epoch_plan, keep=None if last is None else last.drawn)
        if drawn is None:
            return None
        return self._swept(here, drawn, here.epoch_plan) if sweeps else self._turned(here, drawn, last)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Carried:
        """See :meth:`Control.restore`."""
        drawn = Drawn.again(here, state)
        table = CarriedRows.of(state["rows"], here.trainer.strategy.root_device, drawn.beta, self.decay)
        return _carried(here, drawn, plan, table, state["logs"], state["epoch"])

    def _swept(self, here: Here, drawn: Drawn, plan: Plan) -> Carried | None:
        """Begin with the rows of a sweep; the rows of directions that the sweep dropped are refreshed too."""
        measured = measure(here, drawn, plan)
        if measured is None:
            return None
        swept, logs = measured
        here.totals.snapshots += 1
        return _carried(here, drawn, plan, self._table(here, drawn, swept.weights, drawn.directions.whiten(swept.deltas)), logs)

    def _turned(self, here: Here, drawn: Drawn, before: Carried | None) -> Carried:
        """Convert the last table to new directions, or begin with an empty table that the epoch fills."""
        if before is not None and not same_tensors(drawn.parameters, before.parameters):
            before = None
        if before is not None and before.directions is not drawn.directions and not here.settings.directions.learns:
            before = None  # rows along other directions have next to no part along random directions
        plan = here.epoch_plan if before is None or before.plan is None else before.plan
        if before is None:
            table = self._table(here, drawn, _weights(here.trainer, plan))
        else:
            table = before.table
            if before.directions is not drawn.directions:
                table.turn(before.directions.turning(drawn.directions, drawn.parameters))
        table.beta = drawn.beta
        return _carried(here, drawn, plan, table, {})

    def _table(self, here: Here, drawn: Drawn, weights: Tensor, deltas: Tensor | None = None) -> CarriedRows:
        # Rows are bounded only if the coefficient is measured, since a fixed coefficient assumes unbounded rows.
        count, group, bounds = drawn.directions.count, here.trainer.accumulate_grad_batches, here.settings.alpha == "adaptive"
        return CarriedRows(weights, count, drawn.beta, group, deltas, bounds=bounds, decay=self.decay)


def _carried(
    here: Here, drawn: Drawn, plan: Plan | None, table: CarriedRows, logs: dict[str, float], epoch: int | None = None
) -> Carried:
    correction = Correction(drawn.parameters, drawn.directions, table, coefficient=here.learning.coefficient)
    return Carried(here.trainer.current_epoch if epoch is None else epoch, drawn, plan, table, correction, logs)


def _weights(trainer: Trainer, plan: Plan) -> Tensor:
    """The number of samples of each batch over all ranks, shape ``(K,)``; takes one reduction over the ranks."""
    check_batches(trainer, plan.length)
    sizes = torch.tensor(plan.sizes(), dtype=torch.float64, device=trainer.strategy.root_device)
    total: Tensor = trainer.strategy.reduce(sizes, reduce_op="sum")
    return total
