"""The control variate that measurement chooses: nothing, carried rows or a sweep, snapshot by snapshot."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.schedules import Decision
from lightning_vamo.core.schedules.decision import Carriable
from lightning_vamo.loop.control.automatic import Auto
from lightning_vamo.loop.control.base import Control, Snapshot
from lightning_vamo.loop.control.carried import Carried, Carry
from lightning_vamo.loop.control.choice import Choice
from lightning_vamo.loop.control.drawn import begin_learning, learns_here, turn
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.looks import BURST, CARRIED, JUDGED, RARE, begin_look, fills, looks_within, trial
from lightning_vamo.loop.control.recompute import Recompute, swept_batches
from lightning_vamo.loop.control.waiting import leave_out, waits
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.parameters import same_tensors
from lightning_vamo.loop.plan.plan import Plan, has_plan
from lightning_vamo.loop.plan.whole import is_whole, lasts


@dataclass(frozen=True)
class Chosen(Control):
    """Nothing, carried rows or a sweep: what :class:`~lightning_vamo.core.schedules.EfficientProbes` chooses.

    The steps are plain at first; a burst of them teaches directions. Where rows can be carried, an epoch fills their table, and
    the first steps with these rows tell what the rows explain. Then there is a choice at each epoch's start.

    Attributes:
        carry: How rows are carried; None if they are not to be.
        sweep: How sweeps are made; None if there are to be none.
    """

    carry: Carry | None
    sweep: Control | None

    @classmethod
    def of(cls, control: Control) -> "Chosen":
        """The choices that a user's ``control`` leaves: all for ``"auto"``, else that one or nothing."""
        if isinstance(control, Auto):
            return cls(Carry(), control)
        if isinstance(control, Carry) and control.sweep_every_n_epochs is None:
            return cls(control, None)
        return cls(None, control)

    @functools.cached_property  # read in every step
    def _options(self) -> list[Control]:
        return [option for option in (self.carry, self.sweep) if option is not None]

    @property
    def kinds(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`Control`."""
        return tuple(kind for option in self._options for kind in option.kinds)

    @property
    def records(self) -> Any:  # type: ignore[override]
        """See :class:`Control`."""
        return self._options[-1].records

    @property
    def watches(self) -> bool:  # type: ignore[override]
        """See :class:`Control`."""
        return self._options[-1].watches

    @property
    def every_n_train_steps(self) -> int | None:  # type: ignore[override]
        """See :class:`Control`."""
        return self._options[-1].every_n_train_steps

    def begins(self, epoch: int) -> bool:
        """See :meth:`Control.begins`; carried rows are judged at each epoch's start, whether or not their directions turn."""
        return self.carry is not None or self._options[-1].begins(epoch)

    def ends(self, epoch: int) -> bool:
        """See :meth:`Control.ends`; snapshots of different kinds end at different times: see :meth:`keeps`."""
        return False

    def keeps(self, snapshot: Snapshot, epoch: int) -> bool:
        """See :meth:`Control.keeps`."""
        return not self._of_kind(snapshot.kind).ends(epoch)

    def replaces(self, epoch: int) -> bool:
        """See :meth:`Control.replaces`."""
        return self.carry is None and self._options[-1].replaces(epoch)

    def sweeps(self, steps: float, *, twice: bool = True) -> float:
        """See :meth:`Control.sweeps`."""
        return self._options[-1].sweeps(steps, twice=twice)

    def warn_of_reload(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_reload`."""
        self._options[-1].warn_of_reload(advice)

    def warn_of_changing_data(self, advice: Advice) -> None:
        """See :meth:`Control.warn_of_changing_data`."""
        self._options[-1].warn_of_changing_data(advice)

    def _of_kind(self, kind: str) -> Control:
        return next(option for option in self._options if kind in option.kinds)

    def restore(self, here: Here, state: dict[str, Any], plan: Plan | None) -> Snapshot:
        """See :meth:`Control.restore`."""
        return self._of_kind(state["kind"]).restore(here, state, plan)

    # ---- choosing

    def take(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """See :meth:`Control.take`."""
        choice, learning = _choice(here), here.learning
        learning.learned_at = None
        here.catch_up()
        if choice.sweeping:  # the training was interrupted in the sweep, and resumed
            return self._swept(here, before)
        carried = before if isinstance(before, Carried) else None
        others = carried is not None and not same_tensors(carried.parameters, here.parameters)
        if choice.stage in ("fill", "judge", "carry"):
            if carried is None:
                why = "the carried rows are lost, as the training batches or their accumulation have changed"
                choice.lose(here.trainer, why, pauses=looks_within(here))
                return None
            if others:
                choice.lose(here.trainer, "the carried rows are lost, as other weights train now", pauses=None)
        if others:
            before = carried = None
        if choice.stage == "fill" or (choice.stage == "judge" and here.trainer.global_step < choice.judged_at):
            return self._filled(here, carried)
        if here.settings.directions.learns and not self._learned(here):
            return self._filling(here)
        return self._decided(here, before, carried)

    def _filling(self, here: Here) -> Snapshot | None:
        """Let an epoch of a look fill a table too, along what is known of directions, if the look ends with the epoch."""
        return self.carry.take(here, None) if self.carry is not None and self._carries(here) and fills(here) else None

    def _filled(self, here: Here, carried: Carried | None) -> Snapshot | None:
        """Let an epoch begin with rows that are still to be judged."""
        assert self.carry is not None
        choice = _choice(here)
        if choice.stage == "fill":
            turn(here)
            return self._judged(here, carried)
        begun = here.trainer.global_step > choice.judged_at - JUDGED  # else the directions have just turned
        if begun and self.carry.begins(here.trainer.current_epoch):
            turn(here)
            carried = self.carry.take(here, carried)
        here.learning.learned_at = choice.judged_at
        return carried

    def _judged(self, here: Here, carried: Carried | None) -> Snapshot | None:
        """Use rows for the first time, with the directions to which the learner has just turned; soon they will be judged."""
        assert self.carry is not None
        choice = _choice(here)
        choice.stage, choice.judged_at = "judge", here.trainer.global_step + JUDGED
        carried = self.carry.take(here, carried)
        here.learning.learned_at = choice.judged_at
        return carried

    def _learned(self, here: Here) -> bool:
        """Whether directions have been learned for a choice; else the present look goes on, or the next one begins."""
        choice, learning = _choice(here), here.learning
        warmup = here.settings.directions.warmup_batches
        # A measured choice warms up only if the user has asked for that.
        asked, others = 0 if warmup == "auto" else warmup, not learns_here(here)
        if others:
            learning.learner, choice.stage = None, "rest"
        rests = choice.stage == "rest" and not (others and asked) and self._carries(here)
        if rests and waits(here, choice, others=others):
            return False
        if others and asked:
            begin_learning(here, lambda: swept_batches(here), asked)
            if learning.learner is not None and learning.learner.ready:
                return True  # from a warm-up
        elif choice.stage in ("carry", "judge", "sweep"):
            return True
        elif choice.stage == "look":
            assert choice.look is not None
            if here.trainer.global_step < choice.look.until:
                learning.learned_at = choice.look.until if self._every(here) is not None else None
                return False
            if learning.learner is not None and learning.learner.ready:
                return True
        self._look(here)
        return False

    def _look(self, here: Here, *, pause: bool = False) -> None:
        """Begin a look, if enough epochs are left for what it may lead to: carried rows need one that fills their table."""
        if begin_look(here, self._every(here), CARRIED if self._carries(here) else 1, pause=pause):
            begin_learning(here, lambda: swept_batches(here), 0)
        elif self._carries(here):
            leave_out(here.trainer, _choice(here))

    def _every(self, here: Here) -> float | None:
        """Steps from one snapshot to the next, infinitely many where the epoch has no end; None where epochs tell."""
        endless = math.isinf(here.steps_per_epoch)
        return self.every_n_train_steps or (math.inf if endless else None)

    def _carries(self, here: Here) -> bool:
        """Whether rows can be carried: where there is another choice, only if that keeps no data from the training."""
        if self.carry is None or not has_plan(here.trainer):
            return False
        return self.sweep is None or (lasts(here.trainer) and is_whole(here.trainer))

    def _sweeps(self, here: Here) -> float | None:
        """How often a batch is probed per epoch, on average; None if there is to be no probing."""
        option = self.sweep.option(here) if isinstance(self.sweep, Auto) else self.sweep
        if option is None:
            return None
        return option.sweeps(here.steps_per_epoch, twice=not isinstance(option, Recompute) or swept_batches(here) is not None)

    def _decided(self, here: Here, before: Snapshot | None, carried: Carried | None) -> Snapshot | None:
        choice, settings, learner = _choice(here), here.settings, here.learning.learner
        # The loader of a resumed run has drawn nothing yet where a look's table is decided on; such a table tells enough.
        judging, carries = choice.stage == "judge", (choice.stage == "look" and carried is not None) or self._carries(here)
        keeps = choice.stage == "carry" and self.carry is not None and not self.carry.begins(here.trainer.current_epoch)
        within = judging or keeps  # a pass of the learner, whose directions stay
        if learner is not None and not within:
            turn(here)
        if learner is None:
            shares: Tensor | None = _of_random(here, choice.schedule.maximum)
        else:  # the rows that are judged are those along the directions of the present pass
            shares = learner.shares_so_far() if within else learner.shares
        decision = choice.decide(
            here.trainer,
            shares,
            settings.difference,
            self._sweeps(here),
            Carriable(_explained(here), trial=None if carried is None else trial(here)) if carries else None,
            pauses=looks_within(here) if carries else None,
        )
        if decision.afresh or decision.kind == "look":
            here.learning.coefficient = None
        if decision.kind == "carry" and within:
            choice.stage = "carry"
            return carried
        return self._act(here, decision, carries, before, carried)

    def _act(
        self, here: Here, decision: Decision, carries: bool, before: Snapshot | None, carried: Carried | None
    ) -> Snapshot | None:
        """Do what has been decided."""
        choice = _choice(here)
        if decision.kind == "look" and carried is not None:
            return self._judged(here, carried)
        if decision.kind in ("look", "carry") and self.carry is not None:
            choice.stage = "fill" if decision.kind == "look" else "carry"
            return self.carry.take(here, carried)
        if decision.kind == "sweep":
            return self._swept(here, None if carried is not None else before)
        choice.stage = "rest"
        if not carries and here.settings.directions.learns:
            self._look(here, pause=True)
        return None

    def _swept(self, here: Here, before: Snapshot | None) -> Snapshot | None:
        """Sweep, and use the rows of the sweep."""
        assert self.sweep is not None
        choice = _choice(here)
        again = BURST * (RARE if choice.stage == "sweep" else 1)
        choice.sweeping = True  # in a checkpoint that is saved before the sweep is over
        snapshot = self.sweep.take(here, before)
        choice.sweeping, choice.stage = False, "sweep"
        if math.isinf(here.steps_per_epoch):
            here.learning.learned_at = here.trainer.global_step + again
        return snapshot


def _choice(here: Here) -> Choice:
    assert here.choice is not None, "the number of probes is chosen by measurement"
    return here.choice


def _of_random(here: Here, maximum: int) -> Tensor:
    """The share of the noise in the span of as many random directions."""
    return torch.arange(1, maximum + 1, dtype=torch.float64, device="cpu") / here.dimension


def _explained(here: Here) -> Tensor | None:
    """What carried rows explain, if they have been used; if a sweep has, what was known before it."""
    choice, coefficient = _choice(here), here.learning.coefficient
    if choice.stage == "sweep":
        return choice.explained
    return coefficient.explained if isinstance(coefficient, Regression) and choice.stage in ("judge", "carry") else None
