"""SVRG's control variates: a batch's gradient at a snapshot, minus the full gradient at the snapshot."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.control.anchored import Falling, Fixed, GradientCorrection, GradientRegression
from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.control.mixing import is_number
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.core.small import Small, small
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_whole
from lightning_vamo.loop.control.base import Control, Snapshot
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.observer import observers, probing
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.gradient_sweep import GradientSweep, sweep_gradients

NamedAlpha = Literal["linear-decay", "adaptive"]


class Anchored(Snapshot):
    """A snapshot whose rows are gradients.

    Args:
        epoch: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        correction: Corrects the gradients of the steps.
        logs: See :class:`~lightning_vamo.loop.control.base.Snapshot`.
        period: Number of optimizer steps until the next snapshot; 0 if there is no next snapshot.

    Attributes:
        correction: Corrects the gradients of the steps.
        period: Number of optimizer steps until the next snapshot; 0 if there is no next snapshot.
        steps: Number of optimizer steps since the snapshot.
    """

    def __init__(self, epoch: int, correction: GradientCorrection, logs: dict[str, float], period: int) -> None:
        self.epoch = epoch
        self.correction = correction
        self.logs = logs
        self.period = period
        self.plan = None
        self.steps = 0

    @property
    def count(self) -> int:
        """See :attr:`Snapshot.count`; 0, since there are no probes."""
        return 0

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The parameters that are corrected."""
        return self.correction.parameters

    @property
    def factors(self) -> Small:
        """See :class:`Snapshot`."""
        factors = self.correction.factors
        return small(factors) if isinstance(factors, Tensor) else factors

    @abstractmethod
    def row(self, keys: Sequence[Any], accumulated: int, scale: Callable[[Tensor], Tensor] | None) -> list[Tensor] | None:
        """The control variate of an optimizer step.

        Args:
            keys: The keys by which the snapshot knows the rows of the step's batches.
            accumulated: The number that the loss of each batch was divided by.
            scale: Scales numbers as the gradients in ``.grad`` are scaled.

        Returns:
            For each parameter, this process's part; None if there are no rows yet.
        """

    def correct(
        self,
        rows: Sequence[Any],
        accumulated: int,
        scale: Callable[[Tensor], Tensor] | None,
        progress: float,
        slopes: Slopes | None,
    ) -> Small | None:
        """See :meth:`Snapshot.correct`."""
        row = self.row(rows, accumulated, scale) if rows else None
        return None if row is None else self.correction.apply(row, scale, progress)

    def total(self, moments: Tensor) -> Tensor:
        """See :meth:`Snapshot.total`; the correction has added the numbers up already."""
        return moments

    def rows(self, trainer: Trainer, keys: Sequence[Any]) -> Sequence[Any]:
        """See :meth:`Snapshot.rows`."""
        self.steps += 1
        return keys

    def progress(self, share: float) -> float:
        """See :meth:`Snapshot.progress`; the share of the snapshot's steps so far."""
        return min(1.0, max(0, self.steps - 1) / self.period) if self.period else share

    def state_dict(self, trainer: Trainer) -> dict[str, Any]:
        """See :meth:`Snapshot.state_dict`."""
        # State that is the same on every rank is saved once; each rank saves its own shards.
        holds = trainer.is_global_zero or any(map(is_sharded, self.parameters))
        return {
            "kind": self.kind,
            "epoch": self.epoch,
            "dimension": sum(parameter.numel() for parameter in self.parameters),
            "logs": self.logs,
            "period": self.period,
            "steps": self.steps,
            "rows": {name: value if holds else None for name, value in self.row_state().items()},
        }

    @abstractmethod
    def row_state(self) -> dict[str, Any]:
        """The state of the rows for a checkpoint, as plain types and tensors."""


@dataclass(frozen=True)
class AnchoredControl(Control):
    r"""Base class of control variates that are made of gradients.

    Args:
        alpha: The mixing coefficient :math:`\alpha`: a number, ``"linear-decay"``, or ``"adaptive"``.
        every_n_epochs: Epochs from one snapshot to the next, at least 1.
        title: Name of the method, for messages and progress bars.

    Raises:
        InvalidArgumentError: If a value is not allowed.
    """

    alpha: float | NamedAlpha = 1.0
    every_n_epochs: int = 1
    title: str = "SVRG"

    made_of = "gradients"
    instead = "set gradients='recompute', or train with alpha=0"

    def __post_init__(self) -> None:
        check_whole("every_n_epochs", self.every_n_epochs)
        alpha = self.alpha
        if isinstance(alpha, str) and alpha in get_args(NamedAlpha):
            return
        if not is_number(alpha):
            names = ", ".join(map(repr, get_args(NamedAlpha)))
            raise InvalidArgumentError(f"`alpha` must be one of {names}, or a finite number >= 0, got {alpha!r}.")

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`."""
        return epoch % self.every_n_epochs == 0

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`."""
        return self.begins(epoch + 1)

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return True

    def correction(self, here: Here) -> GradientCorrection:
        """The correction of gradients; an adaptive coefficient continues from the last snapshot's coefficient.

        Args:
            here: The present state of the run.

        Returns:
            The correction.
        """
        learning = here.learning
        if not (self.alpha == "adaptive" and isinstance(learning.coefficient, GradientRegression)):
            learning.coefficient = _coefficient(self.alpha)
        return GradientCorrection(here.parameters, learning.coefficient)

    def coefficient_again(
        self, settings: ProbeSettings, state: dict[str, Any] | None, snapshot: dict[str, Any] | None
    ) -> Coefficient | None:
        """See :meth:`Control.coefficient_again`."""
        if state is not None and self.alpha == "adaptive":
            return GradientRegression.of(state)
        return None if snapshot is None else _coefficient(self.alpha)

    def period(self, here: Here) -> int:
        """The number of optimizer steps until the next snapshot."""
        if math.isfinite(here.steps_per_epoch):
            return math.ceil(here.steps_per_epoch) * self.every_n_epochs
        raise UnsupportedError(
            f"{self.title} takes the gradient of all the data at its snapshots, but the training data has no length: set"
            " Trainer(limit_train_batches=...) to a whole number, or use VAMOCallback(control='recompute'), which needs no pass"
            " over the data."
        )

    def sweep(self, here: Here, plan: Swept, see: Callable[[int, list[Tensor | None]], None]) -> GradientSweep:
        """Differentiate all batches at the snapshot, and count the time and the evaluations.

        Args:
            here: The present state of the run.
            plan: The batches.
            see: Called with the position and the gradient of each batch.

        Returns:
            The costs of the sweep.
        """
        trainer, module = here.trainer, here.module
        compat.drop_gradients(trainer, module, trainer.fit_loop.batch_idx)
        with probing(trainer, module, "sweep"), here.watch.looking_away():
            swept = sweep_gradients(trainer, module, plan, here.parameters, see, f"{self.title} sweep", tells=self.watches)
        for observer in observers(trainer):
            observer.on_sweep(trainer, module, swept)
        here.totals.add_sweep(swept.evaluations, swept.seconds, swept.evaluations)
        here.totals.snapshots += 1
        return swept


def _coefficient(alpha: float | NamedAlpha) -> Coefficient:
    if isinstance(alpha, str):
        return GradientRegression() if alpha == "adaptive" else Falling()
    return Fixed(alpha)


def is_finite(correction: GradientCorrection, gradients: Sequence[Tensor | None]) -> Tensor:
    """Whether a gradient is finite on all shards.

    Args:
        correction: The correction, which knows the shards.
        gradients: The gradient of each parameter.

    Returns:
        Shape ``()``, bool, the same on every rank.
    """
    return torch.as_tensor(correction.square(gradients).isfinite())
