"""Recomputed rows: each step evaluates its own batch at the snapshot, for data whose batches come only once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.probes import Point, probe_differences
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.drawn import Drawn
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.probed import Probed
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.observer import probing
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.groups import probe
from lightning_vamo.loop.sweep.radius import RadiusSearch
from lightning_vamo.loop.sweep.repeat import ChangingLossError, check_repeats


@dataclass
class Center:
    """The mean that is subtracted from rows, and the number of steps that use this mean.

    Attributes:
        control: Centres rows, and turns them into coefficients.
        mu: Smoothing radius.
        period: Number of optimizer steps until the next snapshot; None if it is not known.
        usable: Which directions the sweep for the mean has not dropped, shape ``(q,)``; None if there was no sweep.
        steps: Number of optimizer steps since the snapshot.
        unknown: Whether to check, at the first batch, that a second evaluation gives the same loss; no sweep has done so.
        search: Whether to search for a better radius at the first batch.
        spoilt: Whether a second evaluation gave another loss, so that there are no rows.
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
    r"""A snapshot that keeps its weights; each step evaluates its own batch at these weights.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        drawn: The directions.
        center: The mean of the rows, and the radius.
        loader: The training loader of the batches.
        correction: Corrects the gradients of the steps.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        origin: This process's part of the snapshot's weights :math:`\tilde x`; by default the present parameters.
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
        self._last: ModuleState | None = None

    @torch.no_grad()
    def before_step(self, here: Here, batch: Any) -> int:
        """Compute the next batch's row: evaluate the batch at the snapshot, and leave no trace.

        The evaluation begins with the random state of the step, so a dropout mask, or an augmentation in ``training_step``, is
        the same.

        Args:
            here: The present state of the run.
            batch: The batch, after the transfer and its hooks.

        Returns:
            The number of forward passes that the row took.
        """
        trainer, module, parameters = here.trainer, here.module, self.parameters
        batch_idx, difference = trainer.fit_loop.batch_idx, here.settings.difference
        if self._center.spoilt:
            self._row = self._nothing()
            return 0
        with probing(trainer, module, "row"):
            compat.drop_gradients(trainer, module, batch_idx)
            reshard = compat.resharding(module)
            reshard()  # the shards are copied and put back, not whole parameters
            with (
                compat.without_buffer_sync(trainer),
                no_trace(trainer, module, parameters, self._last) as state,
                Point(parameters),  # the present weights, to which the parameters return
            ):
                point = Point(parameters, self._origin)
                point.restore()
                swept = SweptBatch(batch, batch_idx, here.oracle, point, state, reshard)
                self._look(here, swept, point)
                [row] = probe([swept], point, self.directions, self._center.mu, difference, samples=False)
            self._last = state
        if row.losses is None or self._center.spoilt:
            deltas = self._nothing()
        else:
            deltas = probe_differences(row.losses, self._center.mu, difference)
        usable = self._center.usable
        self._row = self.directions.whiten(deltas if usable is None else torch.where(usable, deltas, 0.0))
        return row.evaluations

    def _look(self, here: Here, batch: SweptBatch, point: Point) -> None:
        """Check the first batch and choose the radius, as a sweep does on its first batch."""
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
        """The row of a batch that has no usable row: NaN in each entry."""
        like = self.parameters[0]
        return torch.full((self.count,), math.nan, dtype=at_least_float32(like.dtype), device=like.device)

    def begin_epoch(self, generator: torch.Generator) -> list[int] | None:
        """See :meth:`Snapshot.begin_epoch`; None, since each step computes its own row."""
        return None

    def key(self, row: int | None) -> Tensor:
        """See :meth:`Snapshot.key`; the key is this rank's row itself."""
        return self._row

    def rows(self, trainer: Trainer, keys: Sequence[Any]) -> list[Tensor]:
        """See :meth:`Snapshot.rows`; averages the rows over the ranks in one reduction, and adds them to the running mean."""
        self._center.steps += 1
        rows = list(keys)
        if trainer.world_size > 1:
            total = torch.stack(rows)
            torch.distributed.all_reduce(total)  # not the strategy's `reduce`, which waits at a barrier first
            rows = list(total / trainer.world_size)
        self._center.control.see(rows)
        return rows

    def progress(self, share: float) -> float:
        """See :meth:`Snapshot.progress`; the share of the snapshot's steps so far."""
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
        """See :meth:`Probed.row_state`; the weights are saved once, or each rank saves its part of the weights."""
        holds = trainer.is_global_zero or any(map(is_sharded, self.parameters))
        control = self._center.control.state_dict()
        return {**vars(self._center), "control": control, "origin": list(self._origin) if holds else None}
