"""Recomputed rows: the losses of each step's own batch at the snapshot, for batches that come only once."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor

from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.probes.difference import Difference, probe_differences
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.settings import VAMOSettings
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.step.driver import GradientCallback, Mode
from lightning_vamo.loop.sweep.batch import SweptBatch
from lightning_vamo.loop.sweep.groups import probe


def snapshot_steps(trainer: Trainer, settings: VAMOSettings) -> int | None:
    """How many optimizer steps a snapshot is to last.

    Args:
        trainer: The trainer.
        settings: When to take a snapshot, and how to use it.

    Returns:
        The number; None if epochs have no known length.

    Raises:
        UnsupportedError: If the coefficient needs to know it.
    """
    if settings.every_n_train_steps is not None:
        return settings.every_n_train_steps
    steps = trainer.num_training_batches / trainer.accumulate_grad_batches * settings.every_n_epochs
    if math.isfinite(steps):
        return math.ceil(steps)
    if settings.alpha == "linear-decay":
        raise UnsupportedError(
            "`alpha='linear-decay'` falls over the steps of a snapshot, and the training data has no length that tells how many"
            " they are: set every_n_train_steps, or another `alpha`."
        )
    return None


class Recomputation:
    r"""What a snapshot leaves behind where rows are recomputed: its weights, and the mean to centre rows around.

    Args:
        parameters: The parameters, which hold the snapshot :math:`\tilde x` unless ``origin`` does.
        directions: The probe directions.
        control: Turns rows into coefficients.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        loader: The training loader that batches come from.
        period: Optimizer steps that the snapshot is to last; None if that is not known.
        usable: Which directions the sweep for the mean has not dropped, shape ``(q,)``; None if there was no sweep.
        origin: The numbers of the snapshot that this process holds, if the parameters have moved on.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: ProbeDirections,
        control: RecomputedControlVariate,
        mu: float,
        difference: Difference,
        loader: CombinedLoader | None,
        period: int | None,
        usable: Tensor | None = None,
        origin: Sequence[Tensor] | None = None,
    ) -> None:
        self.control = control
        self.loader = loader
        self.row = torch.empty(0)
        """Probe differences of this rank's current batch, shape ``(q,)``; NaN if it gave no loss."""
        self._parameters = parameters
        self._origin = Point(parameters).origin if origin is None else origin
        self._directions = directions
        self._mu = mu
        self._difference = difference
        self._period = period
        self._usable = usable
        self._steps = 0
        self._last: ModuleState | None = None

    @torch.no_grad()
    def evaluate(self, trainer: Trainer, module: LightningModule, driver: GradientCallback, batch: Any) -> int:
        """Evaluate the batch that is trained on next at the snapshot, for its row, leaving no trace.

        The random state is the one that the step begins with, so a dropout mask, or an augmentation in ``training_step``, is
        the same.

        Args:
            trainer: The trainer.
            module: Its module.
            driver: The callback that answers the module's ``training_step``.
            batch: The batch, transferred and transformed.

        Returns:
            How many forward passes it took.
        """
        batch_idx = trainer.fit_loop.batch_idx
        compat.drop_gradients(trainer, module, batch_idx)
        reshard = compat.resharding(module)
        reshard()  # what is kept and put back are the shards
        with (
            compat.without_buffer_sync(trainer),
            no_trace(trainer, module, self._parameters, self._last) as state,
            Point(self._parameters),  # the weights that are trained, to which the parameters return
            driver.mode(Mode.PROBE),
        ):
            snapshot = Point(self._parameters, self._origin)
            snapshot.restore()
            evaluate = functools.partial(driver.probed_loss, trainer)
            swept = SweptBatch(batch, batch_idx, evaluate, snapshot, state, reshard)
            [row] = probe([swept], snapshot, self._directions, self._mu, self._difference, noise_samples=0)
        self._last = state
        if row.losses is None:
            dtype = at_least_float32(self._parameters[0].dtype)
            deltas = torch.full((self._directions.count,), math.nan, dtype=dtype, device=module.device)
        else:
            deltas = probe_differences(row.losses, self._mu, self._difference)
        self.row = self._directions.whiten(deltas if self._usable is None else torch.where(self._usable, deltas, 0.0))
        return row.evaluations

    def averaged(self, trainer: Trainer, rows: Sequence[Tensor]) -> list[Tensor]:
        """Average the rows of an optimizer step over the ranks, in one reduction, and count them in.

        Args:
            trainer: The trainer; every rank must call it.
            rows: This rank's rows, one per batch whose gradient was accumulated.

        Returns:
            The rows, the same on every rank.
        """
        self._steps += 1
        if trainer.world_size > 1:
            total = torch.stack(list(rows))
            torch.distributed.all_reduce(total)  # not the strategy's `reduce`, which waits at a barrier first
            rows = list(total / trainer.world_size)
        self.control.see(rows)
        return list(rows)

    @property
    def progress(self) -> float:
        """Share of the snapshot's steps that come before the present one."""
        return min(1.0, max(0, self._steps - 1) / self._period) if self._period else 0.0

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """What a checkpoint holds, as plain types and tensors: the weights once, or of each rank the part that it holds."""
        holds = trainer.is_global_zero or any(map(is_sharded, self._parameters))
        return {
            "origin": list(self._origin) if holds else None,
            "mu": self._mu,
            "difference": self._difference,
            "period": self._period,
            "steps": self._steps,
            "usable": self._usable,
            "control": self.control.state_dict(),
        }

    @classmethod
    def of(
        cls, state: dict[str, Any], parameters: Sequence[Tensor], directions: ProbeDirections, loader: CombinedLoader | None
    ) -> "Recomputation":
        """One that goes on from a state of :meth:`state_dict`, on the device of its tensors."""
        control = RecomputedControlVariate.of(state["control"])
        given = (state[name] for name in ("period", "usable", "origin"))
        other = cls(parameters, directions, control, state["mu"], state["difference"], loader, *given)
        other._steps = state["steps"]
        return other
