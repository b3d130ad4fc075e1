"""SVRG as in its paper: each step computes the gradient of its own batch at the snapshot's weights too."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_vamo.core.control.anchored import GradientCorrection
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.sharding import local
from lightning_vamo.core.small import Small
from lightning_vamo.errors import NonFiniteLossError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.anchored import Anchored, AnchoredControl
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.recompute import swept_batches
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import probing
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.plan.tensors import fresh_copy, size_in_bytes
from lightning_vamo.loop.sweep.gradient_sweep import sample_counts
from lightning_vamo.loop.sweep.gradients import SMALL_MODEL, differentiate


class RecomputedGradients(Anchored):
    r"""A snapshot that keeps its weights and their full gradient; each step differentiates its own batch at these weights too.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        correction: See :class:`Anchored`.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        period: See :class:`Anchored`.
        mean: This process's part of :math:`\nabla f(\tilde x)`, for each parameter.
        loader: The training loader of the batches.
        origin: This process's part of the snapshot's weights :math:`\tilde x`; by default the present parameters.
    """

    kind = "recompute-gradients"

    def __init__(
        self,
        epoch: int,
        correction: GradientCorrection,
        logs: dict[str, float],
        period: int,
        mean: list[Tensor],
        loader: CombinedLoader | None,
        origin: Sequence[Tensor] | None = None,
    ) -> None:
        super().__init__(epoch, correction, logs, period)
        self.mean = mean
        self.loader = loader
        self.origin = Point(correction.parameters).origin if origin is None else origin
        self.sum: list[Tensor] | None = None
        """Sum of the rows of the batches that the coming step accumulates; None between two steps."""
        self.lost = torch.zeros((), device=mean[0].device)
        """Number of steps whose row was not finite."""
        self._last: ModuleState | None = None
        self._aside: list[Tensor] | None = None  # of a small model: memory for the present weights during a row

    def before_step(self, here: Here, batch: Any) -> int:
        """Compute the next batch's row: differentiate the batch at the snapshot, and leave no trace.

        The evaluation begins with the random state of the step, so a dropout mask, or an augmentation in ``training_step``, is
        the same.

        Args:
            here: The present state of the run, whose totals count the backward pass.
            batch: The batch, after the transfer and its hooks.

        Returns:
            The number of forward passes that the row took.
        """
        trainer, module, parameters = here.trainer, here.module, list(self.parameters)
        batch_idx, seen = trainer.fit_loop.batch_idx, 0
        compat.drop_gradients(trainer, module, batch_idx)
        # DDP may write the next gradient into the memory of this gradient.
        own = not compat.averages_gradients(trainer)

        def see(position: int, gradients: list[Tensor | None], start: float) -> None:
            nonlocal seen
            seen += 1
            rows = _rows(gradients, self.mean, own)
            if self.sum is None:
                self.sum = rows
            else:
                torch._foreach_add_(self.sum, rows)

        with probing(trainer, module, "row"), compat.without_buffer_sync(trainer):
            compat.resharding(module)()  # the shards are copied and put back, not whole parameters
            with self._at_origin():
                batches, options = [(batch_idx, fresh_copy(batch))], {"transferred": True, "restored": True}
                self._last = differentiate(trainer, module, batches, parameters, see, **options, last=self._last)
        here.totals.backward_evaluations += seen
        return seen

    @contextmanager
    def _at_origin(self) -> Iterator[None]:
        """Make a context in which the parameters hold the snapshot's weights."""
        held = [local(parameter) for parameter in self.parameters]
        aside = self._aside or [torch.empty_like(part) for part in held]
        if size_in_bytes(iter(held)) <= SMALL_MODEL:
            self._aside = aside
        with torch.no_grad():
            torch._foreach_copy_(aside, held)
        try:
            with torch.no_grad():
                torch._foreach_copy_(held, list(self.origin))
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(held, aside)

    def key(self, row: int | None) -> int:
        """See :meth:`Snapshot.key`; rows are summed as they are computed, so they need no key."""
        return 0

    def row(self, keys: Sequence[Any], accumulated: int, scale: Callable[[Tensor], Tensor] | None) -> list[Tensor] | None:
        """See :meth:`Anchored.row`."""
        row, self.sum = self.sum, None
        if row is not None and accumulated > 1:
            torch._foreach_div_(row, accumulated)
        return row

    def correct(
        self,
        rows: Sequence[Any],
        accumulated: int,
        scale: Callable[[Tensor], Tensor] | None,
        progress: float,
        slopes: Slopes | None,
    ) -> Small | None:
        """See :meth:`Snapshot.correct`."""
        moments = super().correct(rows, accumulated, scale, progress, slopes)
        self.sum = None
        if moments is not None and self.correction.usable is not None and self.correction.usable is not True:
            self.lost = self.lost + ~torch.as_tensor(self.correction.usable)
        return moments

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """See :meth:`Snapshot.belongs_to`."""
        return self.loader is loader

    @property
    def unused(self) -> float:
        """See :attr:`Snapshot.unused`."""
        return float(self.lost)

    def row_state(self) -> dict[str, Any]:
        """See :meth:`Anchored.row_state`."""
        return {"origin": list(self.origin), "mean": self.mean, "sum": self.sum, "lost": self.lost}


def _rows(gradients: Sequence[Tensor | None], means: Sequence[Tensor], own: bool) -> list[Tensor]:
    """Gradients minus their means; with ``own``, the differences overwrite the gradients, to save memory."""
    given = [None if gradient is None else local(gradient) for gradient in gradients]
    if own and all(part is not None and part.dtype == mean.dtype for part, mean in zip(given, means, strict=True)):
        rows = [part for part in given if part is not None]
        torch._foreach_sub_(rows, list(means))
        return rows
    pairs = zip(given, means, strict=True)
    return [-mean if part is None else part.to(mean.dtype, copy=not own).sub_(mean) for part, mean in pairs]


@dataclass(frozen=True)
class RecomputeGradients(AnchoredControl):
    """Keep the snapshot's weights and its full gradient, and differentiate each step's own batch at the snapshot again."""

    kinds = (RecomputedGradients.kind,)
    records = "where possible"

    def take(self, here: Here, before: Snapshot | None) -> RecomputedGradients:
        """See :meth:`Control.take`."""
        period, correction, plan = self.period(here), self.correction(here), swept_batches(here)
        if plan is None:
            raise UnsupportedError(
                f"{self.title} takes the gradient of all the data at its snapshots, but the training data cannot be read a"
                " second time: give the dataset `__getitem__` and `__len__`, or use VAMOCallback(control='recompute'), which"
                " needs no pass over the data."
            )
        plan = plan.without_replacement(seeded(here.seeds.of(f"snapshot {here.totals.snapshots}")))
        counts = sample_counts(here.trainer, plan)
        weights: Any = counts.tolist() if counts.device.type == "cpu" else counts
        mean: list[Tensor] = correction.zeros()
        weight: Any = 0.0

        def see(position: int, gradients: list[Tensor | None]) -> None:
            nonlocal weight
            weight = weight + correction.add(mean, gradients, weights[position]) * weights[position]

        swept = self.sweep(here, plan, see)
        if float(weight) == 0:
            raise NonFiniteLossError(
                "No training batch has a finite gradient at the snapshot: check the data and the learning rate, and that"
                " `training_step` returns a loss."
            )
        for added in mean:
            added.div_(weight.to(added) if isinstance(weight, Tensor) else weight)
        logs = {"sweep_seconds": swept.seconds}
        loader, epoch = compat.train_loader(here.trainer), here.trainer.current_epoch
        return RecomputedGradients(epoch, correction, logs, period, mean, loader)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> RecomputedGradients:
        """See :meth:`Control.restore`."""
        device, rows, correction = here.trainer.strategy.root_device, state["rows"], self.correction(here)
        origin, mean = ([part.to(device, copy=True) for part in rows[name]] for name in ("origin", "mean"))
        loader = compat.train_loader(here.trainer)
        snapshot = RecomputedGradients(state["epoch"], correction, state["logs"], state["period"], mean, loader, origin)
        snapshot.steps, snapshot.lost = state["steps"], rows["lost"].to(device)
        snapshot.sum = None if rows["sum"] is None else [part.to(device, copy=True) for part in rows["sum"]]
        return snapshot
