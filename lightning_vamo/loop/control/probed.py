"""The base classes of snapshots whose rows are probe differences, and of their control variates."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.probes.along import Along
from lightning_vamo.core.small import Small
from lightning_vamo.loop.control.base import Control, Snapshot
from lightning_vamo.loop.control.drawn import Drawn
from lightning_vamo.loop.sweep.sweep import Sweep


class Probed(Snapshot):
    """Base class of snapshots with probe directions.

    Args:
        epoch: See :class:`Snapshot`.
        drawn: The directions.
        correction: Corrects the gradients of the steps.
        logs: See :class:`Snapshot`.

    Attributes:
        drawn: The directions.
        correction: Corrects the gradients of the steps.
        sweep: The sweep at the snapshot; None if there was no sweep, or if steps have replaced its rows.
    """

    withholds = True

    def __init__(self, epoch: int, drawn: Drawn, correction: Correction, logs: dict[str, float]) -> None:
        self.epoch = epoch
        self.drawn = drawn
        self.correction = correction
        self.logs = {"alpha": correction.control.beta, **logs}
        self.plan = None
        self.sweep: Sweep | None = None

    @property
    def directions(self) -> ProbeDirections:
        """The probe directions."""
        return self.correction.directions

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The parameters that are corrected."""
        return self.correction.parameters

    @property
    def shared(self) -> Along | None:
        """See :attr:`Snapshot.shared`; None if rows are carried without a sweep, which gives no radius."""
        mu = self.logs.get("mu")
        return None if mu is None else Along(self.parameters, self.directions, mu)

    @property
    def count(self) -> int:
        """See :attr:`Snapshot.count`."""
        return self.directions.count

    @property
    def factors(self) -> Small:
        """See :class:`Snapshot`."""
        return self.correction.used

    def correct(
        self,
        rows: Sequence[Any],
        accumulated: int,
        scale: Callable[[Tensor], Tensor] | None,
        progress: float,
        slopes: Slopes | None,
    ) -> Small | None:
        """See :meth:`Snapshot.correct`."""
        return self.correction.remove(rows, accumulated, scale, progress, slopes)

    def withheld(
        self, row: Any, accumulated: int, scale: Callable[[Tensor], Tensor] | None, progress: float
    ) -> AbstractContextManager[None]:
        """See :meth:`Snapshot.withheld`."""
        return self.correction.withheld(row, accumulated, scale, progress)

    def known_slopes(self, learner: Learner | None) -> Slopes | None:
        """See :meth:`Snapshot.known_slopes`."""
        return learner.slopes if learner is not None and learner.current is self.directions else None

    def total(self, moments: Tensor) -> Tensor:
        """See :meth:`Snapshot.total`."""
        return self.correction.total(moments)

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """See :meth:`Snapshot.state_dict`."""
        return {
            "kind": self.kind,
            "epoch": self.epoch,
            "seed": self.drawn.seed,
            "probes": self.directions.count,
            "dimension": sum(parameter.numel() for parameter in self.parameters),
            "kept": self.drawn.kept,
            "directions": self.drawn.family,
            "logs": self.logs,
            "rows": self.row_state(trainer),
        }

    @abstractmethod
    def row_state(self, trainer: Any) -> dict[str, Any]:
        """The state of the rows for a checkpoint, as plain types and tensors."""


class ProbedControl(Control):
    """Base class of the control variates that are made of probe differences: replay, carry and recompute."""
