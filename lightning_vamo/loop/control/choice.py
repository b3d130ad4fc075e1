"""The choice made by measurement: its stage, the times and shares that it goes by, and what it has chosen so far."""

import copy
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules import Decision, EfficientProbes, ProbeSchedule
from lightning_vamo.core.schedules.decision import NUMBERS, Carriable, plainly
from lightning_vamo.core.schedules.efficient import ASSUMED_FORWARD
from lightning_vamo.core.schedules.falling import FAST
from lightning_vamo.loop.ledger.clocks import StepTimes
from lightning_vamo.loop.ledger.losses import EpochLosses
from lightning_vamo.report import Decided

Stage = Literal["rest", "look", "fill", "judge", "carry", "sweep"]
"""Where the choice stands: the steps are plain; some of them are learned from; an epoch fills a table of carried rows; the
first steps with these rows are judged; rows are carried; or a sweep's rows are used."""


@dataclass
class Look:
    """A burst of consecutive plain steps that directions are learned from.

    Attributes:
        since: The optimizer step that it begins with.
        until: The step before which it is over.
        begun: Whether it has begun.
    """

    since: int
    until: int
    begun: bool = False


class Choice:
    """Measures what pays, and lets the schedule choose.

    Args:
        schedule: Chooses, as a copy, which takes what is measured in one fit: the next one begins anew.

    Attributes:
        schedule: As described.
        stage: What the steps are used for.
        look: The burst that is learned from, while ``stage`` is ``"look"``.
        judged_at: The optimizer step at which rows are judged, while ``stage`` is ``"judge"``.
        explained: What carried rows explained when they were judged last; see
            :class:`~lightning_vamo.core.schedules.decision.Carriable`.
        times: Times the training steps.
        losses: The mean training losses of the last epochs.
        figures: What the last choice expects, to log.
        decisions: All changes so far.
        sweeping: Whether a sweep that was chosen is not over yet.
        ends: Whether the last decision said that there is to be no further look.
    """

    def __init__(self, schedule: EfficientProbes) -> None:
        self.schedule = copy.copy(schedule)
        self.stage: Stage = "rest"
        self.look: Look | None = None
        self.judged_at = 0
        self.explained: Tensor | None = None
        self.times = StepTimes()
        self.losses = EpochLosses()
        self.figures: dict[str, float] = {}
        self.decisions: list[Decided] = []
        self.sweeping = self.ends = False
        self._evaluation: float | None = None
        self._rows = 0.0
        self._factors: Tensor | None = None
        self._steps = 0
        self._untold: list[str] = []

    @classmethod
    def of(cls, schedule: ProbeSchedule) -> "Choice | None":
        """The choice of a schedule; None if the schedule does not measure."""
        return cls(schedule) if isinstance(schedule, EfficientProbes) else None

    # ---- steps

    def sees(self, step: int) -> bool:
        """Whether the gradient of an optimizer step is learned from or corrected; else the step is plain Lightning's.

        Args:
            step: The trainer's ``global_step`` before the step.

        Returns:
            Whether it is.
        """
        if self.stage == "look":
            assert self.look is not None
            return self.look.since <= step < self.look.until
        return self.stage != "rest"

    def step_starts(self, trainer: Trainer, learner: Learner | None) -> None:
        """Time a step, and let the learner know where a burst begins.

        Args:
            trainer: The trainer, before the step.
            learner: The learner.
        """
        sees, look = self.sees(trainer.global_step), self.look
        self.losses.accumulated = trainer.accumulate_grad_batches
        self.times.batch_starts("plain" if not sees else self.stage if self.stage in ("look", "sweep") else "carry")
        if self.stage == "look" and look is not None and sees and learner is not None and not look.begun:
            look.begun = True
            learner.interrupt()

    def swept(self, seconds: float) -> None:
        """Record how long an evaluation of a sweep took, in seconds."""
        self._evaluation = seconds

    def used(self, factors: Tensor | float, steps: int, rows: float = 0.0, evaluations: int = 0) -> None:
        """Record an epoch, or a part of an epoch.

        Args:
            factors: Sum over the corrected steps of the factors of their rows, shape ``(q,)``.
            steps: How many there were.
            rows: Seconds within the steps that their rows took, where they are recomputed.
            evaluations: Forward passes that those took.
        """
        self.times.stop()
        if evaluations and steps:
            self._evaluation, self._rows = self._evaluation or rows / evaluations, rows / steps
        if isinstance(factors, Tensor) and self.stage == "sweep":
            so_far = 0.0 if self._factors is None else self._factors
            self._factors = so_far + factors.to("cpu", torch.float64)
            self._steps += steps

    # ---- choosing

    def news(self) -> list[str]:
        """A sentence for each choice since the last call."""
        told, self._untold = self._untold, []
        return told

    def stay_plain(self, trainer: Trainer, reason: str, *, pauses: float | None, told: bool = False) -> None:
        """Choose nothing, outside of :meth:`decide`.

        Args:
            trainer: The trainer.
            reason: Why.
            pauses: Within how many epochs another look may begin; None if there is to be none, or no word of it.
            told: Whether the decision takes the place of the last one, and is not said.
        """
        decision = plainly(reason)
        if told:
            last, epoch, step = self.decisions[-1], trainer.current_epoch, trainer.global_step
            self.decisions[-1] = replace(last, epoch=epoch, step=step, reason=reason)
        else:
            self._announce(trainer, decision, pauses=pauses)
        self._expect(decision)

    def fall(self) -> float | None:
        """The fall of the loss, where rows can be carried; infinite where it will be known in time for a look."""
        fall = self.losses.fall()
        return math.inf if fall is None and self.losses.early else fall

    def may_take_time(self) -> bool:
        """Whether work may be counted in seconds."""
        cost = self.schedule.cost
        return cost == "seconds" or (cost is None and not torch.are_deterministic_algorithms_enabled())

    def decide(
        self,
        trainer: Trainer,
        shares: Tensor | None,
        difference: Difference,
        sweeps: float | None,
        carriable: Carriable | None,
        pauses: float | None = None,
    ) -> Decision:
        """Choose for the steps to come; all ranks choose alike, as they have the same gradients and rows and use one clock.

        Args:
            trainer: The trainer.
            shares: See :meth:`EfficientProbes.decide`.
            difference: ``"forward"`` or ``"central"``.
            sweeps: See :meth:`EfficientProbes.decide`.
            carriable: What is known of carried rows, but for their work; None if no rows can be carried.
            pauses: See :meth:`stay_plain`.

        Returns:
            The choice.
        """
        factors = self._factors / self._steps if self._factors is not None else None
        explained = None if carriable is None else carriable.explained
        costs, fall = self._costs(explained is not None), self.fall() if carriable else self.losses.fall()
        (in_seconds, forward, work), fall = trainer.strategy.broadcast((costs, fall))
        self.schedule.observe(factors, forward if in_seconds else None)
        self._evaluation, self._factors, self._steps = None, None, 0
        self.explained = explained
        before = self.schedule.chosen, self.schedule.kind
        decision = self.schedule.decide(
            shares,
            difference,
            sweeps,
            carriable and replace(carriable, work=work),
            None if in_seconds else ASSUMED_FORWARD,
            fall,
        )
        if (decision.probes, decision.kind) != before or (carriable and self.stage == "look"):
            self._announce(trainer, decision, pauses=pauses)
        self._expect(decision)
        return decision

    def lose(self, trainer: Trainer, why: str, *, pauses: float | None) -> None:
        """Give up rows that are lost, and wait for the next look.

        Args:
            trainer: The trainer.
            why: How they were lost.
            pauses: See :meth:`stay_plain`.
        """
        self.schedule.decide(None, carriable=Carriable())
        self.stay_plain(trainer, why, pauses=pauses)
        self.stage = "rest"

    def _costs(self, judged: bool) -> tuple[bool, float | None, float]:
        """Whether work is counted in seconds, and then the time of a sweep's forward pass and of a step with carried rows."""
        times, cost = self.times, self.schedule.cost
        corrects = "carry" if judged else "look"
        longer = times.longer(corrects)
        # Where all steps had a sweep's rows, these steps tell whether the clock is steady.
        steady = times.steady("plain" if times.typical("plain") is not None else "sweep")
        steady &= times.typical(corrects) is None or times.steady(corrects)
        if not (self.may_take_time() and (cost or steady or longer)):
            cost = "evaluations"
        swept = times.typical("sweep")
        step = times.typical("plain") or (None if swept is None else max(swept - self._rows, 0.0))
        forward = None
        if self._evaluation is not None and step and (steady or cost == "seconds"):
            forward = self._evaluation / step
        return (False, None, 1.0) if cost == "evaluations" else (True, forward, times.work(corrects, steady=steady))

    def _expect(self, decision: Decision) -> None:
        """Set the figures to log to those of a choice."""
        self.figures = {
            "expected_removed": decision.removed,
            "expected_work": decision.work,
            "decision": float(NUMBERS[decision.kind]),
        }

    def _announce(self, trainer: Trainer, decision: Decision, *, pauses: float | None) -> None:
        """Keep what is chosen, for :meth:`news` and for the report."""
        epoch, more, self.ends = trainer.current_epoch, "", False
        if not decision.probes and pauses is not None:
            wait = 1 if self.schedule.waits else self.schedule.wait
            self.ends = wait > pauses
            when = f"next look at epoch {epoch + wait}"
            if self.schedule.waits:
                when = f"next look when the loss falls by less than {100 * FAST:.2g} % an epoch"
            more = f"; training plainly, {'with too few epochs left for a look' if self.ends else when}"
        self._untold.append(f"epoch {epoch}: {decision.reason}{more}.")
        figures = decision.kind, decision.probes, decision.removed, decision.work, decision.reason
        self.decisions.append(Decided(epoch, trainer.global_step, *figures))

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The measurements and the choice, as plain types and tensors."""
        return {
            "schedule": self.schedule.state_dict(),
            "stage": self.stage,
            "look": None if self.look is None else asdict(self.look),
            "judged_at": self.judged_at,
            "explained": self.explained,
            "times": self.times.state_dict(),
            "losses": self.losses.state_dict(),
            "figures": self.figures,
            "decisions": [asdict(decided) for decided in self.decisions],
            "sweeping": self.sweeping,
            "ends": self.ends,
            "evaluation": self._evaluation,
            "rows": self._rows,
            "factors": self._factors,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Args:
            state: What it returned.
        """
        self.schedule.load_state_dict(state["schedule"])
        self.stage, self.judged_at, self.explained = state["stage"], state["judged_at"], state["explained"]
        self.look = None if state["look"] is None else Look(**state["look"])
        self.times = StepTimes(**copy.deepcopy(state["times"]))
        self.losses.load_state_dict(state["losses"])
        self.figures, self.decisions = state["figures"], [Decided(**decided) for decided in state["decisions"]]
        self.sweeping, self.ends, self._evaluation = state["sweeping"], state["ends"], state["evaluation"]
        self._rows, self._factors, self._steps = state["rows"], state["factors"], state["steps"]
