"""Recomputed rows: the losses of each step's own batch at the snapshot, for batches that come only once."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.probes import Point, probe_differences
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.control.base import Here, Snapshot
from lightning_vamo.loop.control.probed import Drawn, Probed, ProbedControl, draw, measure, radius
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import probing
from lightning_vamo.loop.plan.plan import Plan, has_plan, plan_of
from lightning_vamo.loop.plan.reread import Swept, second_reading
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.groups import probe
from lightning_vamo.loop.sweep.radius import RadiusSearch
from lightning_vamo.loop.sweep.repeat import ChangingLossError, check_repeats


@dataclass
class Center:
    """What rows are centred around, and how long it is to last.

    Attributes:
        control: Turns rows into coefficients.
        mu: Smoothing radius.
        period: Optimizer steps that the snapshot is to last; None if that is not known.
        usable: Which directions the sweep for the mean has not dropped, shape ``(q,)``; None if there was no sweep.
        steps: Optimizer steps since the snapshot.
        unknown: Whether it is still to be checked that the loss is a function of the parameters, as no sweep has done so.
        search: Whether a better radius is still to be searched for.
        spoilt: Whether the loss turned out not to be such a function, so that there are no rows.
    """

    control: RecomputedControlVariate
    mu: float
    period: int | None
    usable: Tensor | None = None
    steps: int = 0
    unknown: bool = False
    search: bool = False
    spoilt: bool = False


class Recomputed(Probed):
    r"""A snapshot that keeps its weights, and evaluates the batch of each step there.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        drawn: The directions.
        center: What rows are centred around.
        loader: The training loader that batches come from.
        correction: Corrects the gradients of the steps.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        origin: The numbers of the snapshot :math:`\tilde x` that this process holds; by default the parameters' own.
    """

    kind = "recompute"

    def __init__(
        self,
        epoch: int,
        drawn: Drawn,
        center: Center,
        loader: CombinedLoader | None,
        correction: Correction,
        logs: dict[str, float],
        origin: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(epoch, drawn, correction, logs)
        self._center = center
        self._loader = loader
        self._origin = Point(drawn.parameters).origin if origin is None else origin
        self._row = torch.empty(0)  # of the current batch, shape `(q,)`; NaN if it gave no loss
        self._others: Any = None

    @torch.no_grad()
    def before_step(self, here: Here, batch: Any) -> int:
        """Evaluate the batch that is trained on next at the snapshot, for its row, leaving no trace.

        The random state is the one that the step begins with, so a dropout mask, or an augmentation in ``training_step``, is
        the same.

        Args:
            here: Where the run stands.
            batch: The batch, transferred and transformed.

        Returns:
            How many forward passes it took.
        """
        trainer, module, parameters = here.trainer, here.module, self.parameters
        batch_idx, difference = trainer.fit_loop.batch_idx, here.settings.difference
        if self._center.spoilt:
            self._row = self._nothing()
            return 0
        with probing(trainer, module, "row"):
            compat.drop_gradients(trainer, module, batch_idx)
            reshard = compat.resharding(module)
            reshard()  # what is kept and put back are the shards
            with (
                compat.without_buffer_sync(trainer),
                no_trace(trainer, module, parameters, self._others) as state,
                Point(parameters),  # the weights that are trained, to which the parameters return
                here.oracle.asking(),
            ):
                point = Point(parameters, self._origin)
                point.restore()
                swept = SweptBatch(batch, batch_idx, here.oracle, state, reshard)
                self._look(here, swept, point)
                [row] = probe([swept], point, self.directions, self._center.mu, difference, samples=False)
            self._others = state.others
        if row.losses is None or self._center.spoilt:
            deltas = self._nothing()
        else:
            deltas = probe_differences(row.losses, self._center.mu, difference)
        usable = self._center.usable
        self._row = self.directions.whiten(deltas if usable is None else torch.where(usable, deltas, 0.0))
        return row.evaluations

    def _look(self, here: Here, batch: SweptBatch, point: Point) -> None:
        """Do on the first batch what a sweep would have done on its first one."""
        center, difference = self._center, here.settings.difference
        if center.unknown:
            center.unknown = False
            try:
                check_repeats(here.trainer, batch)
            except ChangingLossError as error:
                here.advice.on_changing_loss(error, first=here.totals.snapshots <= 1)
                center.spoilt = True
        if center.search and not center.spoilt:
            center.search = False
            center.mu = RadiusSearch(here.trainer, [batch], point, self.directions, difference).best(center.mu)
            here.learning.mu = self.logs["mu"] = center.mu

    def _nothing(self) -> Tensor:
        """A row of a batch that has none."""
        like = self.parameters[0]
        return torch.full((self.count,), math.nan, dtype=at_least_float32(like.dtype), device=like.device)

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """See :meth:`Snapshot.begin_epoch`: rows come with their steps."""
        return None

    def key(self, row: int | None) -> Tensor:
        """See :meth:`Snapshot.key`: the row itself, this rank's."""
        return self._row

    def rows(self, trainer: Trainer, keys: Sequence[Any]) -> list[Tensor]:
        """See :meth:`Snapshot.rows`: average them over the ranks, in one reduction, and count them in."""
        self._center.steps += 1
        rows = list(keys)
        if trainer.world_size > 1:
            total = torch.stack(rows)
            torch.distributed.all_reduce(total)  # not the strategy's `reduce`, which waits at a barrier first
            rows = list(total / trainer.world_size)
        self._center.control.see(rows)
        return rows

    def progress(self, share: float) -> float:
        """See :meth:`Snapshot.progress`: a share of the snapshot's steps."""
        period = self._center.period
        return min(1.0, max(0, self._center.steps - 1) / period) if period else 0.0

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """See :meth:`Snapshot.belongs_to`."""
        return self._loader is loader

    @property
    def unused(self) -> float:
        """See :attr:`Snapshot.unused`."""
        return self._center.control.unused

    def row_state(self, trainer: Trainer) -> dict[str, Any]:
        """See :meth:`Probed.row_state`: the weights once, or of each rank the part that it holds."""
        holds = trainer.is_global_zero or any(map(is_sharded, self.parameters))
        control = self._center.control.state_dict()
        return {**vars(self._center), "control": control, "origin": list(self._origin) if holds else None}


@dataclass(frozen=True)
class Recompute(ProbedControl):
    """Keep the snapshot's weights, and evaluate the ``1 + q`` losses of each step's own batch there.

    That is for data that does not come twice: streams, and random augmentation.

    Args:
        every_n_epochs: Epochs from one snapshot to the next, at least 1; by default 1.
        every_n_train_steps: Optimizer steps from one snapshot to the next, the paper's ``m``, at least 1, in place of epochs.

    Raises:
        InvalidArgumentError: If a number is not allowed, or both are given.

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
                " take a snapshot: keep one of them."
            )

    @property
    def epochs(self) -> int:
        """Epochs from one snapshot to the next, where they are counted in epochs."""
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
        """See :meth:`Control.sweeps`: in its row, and in the sweep for the mean where the data can be read twice."""
        if not twice:
            return 1.0
        return 1 + (1 / self.epochs if self.every_n_train_steps is None else steps / self.every_n_train_steps)

    def take(self, here: Here, before: Snapshot | None) -> Recomputed | None:
        """See :meth:`Control.take`."""
        batches = functools.cache(lambda: _batches(here))
        steps = here.trainer.num_training_batches / here.trainer.accumulate_grad_batches
        drawn = draw(here, batches, lambda: self.sweeps(steps, twice=batches() is not None))
        if drawn is None:
            return None
        period, plan, (mu, search) = self._period(here), batches(), radius(here)
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
        """How many optimizer steps a snapshot is to last; None if epochs have no known length."""
        if self.every_n_train_steps is not None:
            return self.every_n_train_steps
        steps = here.trainer.num_training_batches / here.trainer.accumulate_grad_batches * self.epochs
        if math.isfinite(steps):
            return math.ceil(steps)
        if here.settings.alpha == "linear-decay":
            raise UnsupportedError(
                "`alpha='linear-decay'` falls over the steps of a snapshot, and the training data has no length that tells how"
                " many they are: set control=Recompute(every_n_train_steps=...), or another `alpha`."
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


def _batches(here: Here) -> Swept | None:
    """The epoch's plan, or another reading of the data; None if the data cannot be read twice."""
    # Rows are recomputed in any part of an epoch, of which the loaders may have been given a part.
    plan = here.plan or (plan_of(here.trainer) if has_plan(here.trainer) else None)
    return plan or second_reading(here.trainer)
