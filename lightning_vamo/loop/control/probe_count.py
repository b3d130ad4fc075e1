"""Choose the number of probes by measurement: measure the probes, let a schedule choose, and report the choice."""

import copy
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules import Decision, EfficientProbes, ProbeSchedule
from lightning_vamo.loop.ledger.clocks import StepClock


class ProbeChoice:
    """Measures the efficiency of each snapshot's probes, and lets the schedule choose.

    Args:
        schedule: The schedule. A copy of it collects the measurements of one fit, so the next fit begins anew.

    Attributes:
        clock: Times the training steps.
        figures: The expectations of the last choice, to be logged.
    """

    def __init__(self, schedule: EfficientProbes) -> None:
        self.schedule = copy.copy(schedule)
        self.clock = StepClock()
        self.figures: dict[str, float] = {}
        self._evaluation: float | None = None
        self._forward: float | None = None
        self._factors: Tensor | None = None
        self._steps = 0

    @classmethod
    def of(cls, schedule: ProbeSchedule) -> "ProbeChoice | None":
        """The choice of a schedule; None if the schedule does not measure."""
        return cls(schedule) if isinstance(schedule, EfficientProbes) else None

    def swept(self, seconds: float) -> None:
        """Record how long an evaluation of a sweep took, in seconds."""
        self._evaluation = seconds

    def used(self, trainer: Trainer, factors: Tensor | float, steps: int, rows: float = 0.0, evaluations: int = 0) -> None:
        """Record an epoch, or a part of an epoch, with a snapshot or with plain steps.

        Args:
            trainer: The trainer.
            factors: Sum over the corrected steps of the factors of their rows, shape ``(q,)``.
            steps: Number of the corrected steps.
            rows: Seconds within the steps that recomputed rows took.
            evaluations: Number of forward passes that recomputed rows took.
        """
        self.clock.stop(trainer.strategy.root_device)
        self.clock.seconds -= rows
        seconds = self.clock.per_batch()
        if self._evaluation is None and evaluations:
            self._evaluation = rows / evaluations
        if self._evaluation is not None and seconds:
            self._forward = self._evaluation / seconds
        if isinstance(factors, Tensor):
            so_far = 0.0 if self._factors is None else self._factors
            self._factors = so_far + factors.to("cpu", torch.float64)
            self._steps += steps

    def decide(
        self, trainer: Trainer, learner: Learner | None, dimension: int, difference: Difference, sweeps: float
    ) -> Decision:
        """Choose for a snapshot; all ranks choose alike, since they have the same gradients and rows, and use one clock.

        Args:
            trainer: The trainer.
            learner: The learner of the directions; None if directions are not learned.
            dimension: Number of trainable parameters.
            difference: ``"forward"`` or ``"central"``.
            sweeps: Sweeps per epoch, on average.

        Returns:
            The choice.
        """
        factors = self._factors / self._steps if self._factors is not None else None
        self.schedule.observe(factors, trainer.strategy.broadcast(self._forward))
        self._evaluation, self._forward, self._factors, self._steps = None, None, None, 0
        random = torch.arange(1, self.schedule.maximum + 1, dtype=torch.float64, device="cpu") / dimension
        before = self.schedule.chosen
        decision = self.schedule.decide(random if learner is None else learner.shares, difference, sweeps)
        self.figures = {"expected_removed": decision.removed, "expected_work": decision.work}
        if decision.probes != before:
            rank_zero_info(f"VAMO, epoch {trainer.current_epoch}: {decision.reason}.")
        return decision

    def state_dict(self, rows: float = 0.0) -> dict[str, Any]:
        """The measurements and the choice, as plain types and tensors.

        Args:
            rows: Seconds that recomputed rows have taken since the last call of :meth:`used`, which the clock does not count.

        Returns:
            The state.
        """
        clock = self.clock.state_dict()
        return {
            "schedule": self.schedule.state_dict(),
            "clock": {**clock, "seconds": clock["seconds"] - rows},
            "figures": self.figures,
            "evaluation": self._evaluation,
            "forward": self._forward,
            "factors": self._factors,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Args:
            state: The state.
        """
        self.schedule.load_state_dict(state["schedule"])
        self.clock = StepClock(**state["clock"])
        self.figures, self._evaluation, self._forward = state["figures"], state["evaluation"], state["forward"]
        self._factors, self._steps = state["factors"], state["steps"]
