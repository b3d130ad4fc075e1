r"""What removes the most noise for its work, chosen by measurement: nothing, carried rows, or a number of probes."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_vamo.core.efficiency import efficiency, work_factor
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes
from lightning_vamo.core.schedules.decision import (
    MOST,
    Carriable,
    Decision,
    Kind,
    carry_decision,
    no_carry_decision,
    of_sweeps,
    padded,
    plainly,
    removed_by_rows,
    surely,
    sweep_decision,
)
from lightning_vamo.core.schedules.falling import noise_limits, slowest
from lightning_vamo.errors import InvalidArgumentError

Cost = Literal["evaluations", "seconds"]
"""What work is counted in."""

# Before it is measured: a forward pass is about a third of a training step, whose backward pass takes two thirds.
ASSUMED_FORWARD = 1 / 3
# The same where it is hoped that probes which did not pay have become cheaper.
_HOPED_FORWARD = 1 / 10
# Clocks and spectra are noisy: what pays is kept until something else is better by this factor.
_BETTER = 1.05
# What is known of carried rows rests on few steps: they are given up if something else seems better so many times in a row.
_PATIENCE = 2
# Rows explain more from epoch to epoch at first, while directions still turn: as long as they explain more by this factor, they
# are kept if they would pay once they explained all; but not for more epochs than so many, nor rows that remove less than that.
_RISING, _HOPES, _LEAST = 1.1, 5, 0.02
# The attributes that a checkpoint holds.
_STATE = ["chosen", "kind", "wait", "_forward", "_factors", "_idle", "_retrying"]
_STATE += ["_doubted", "_carried", "_hopes", "_fell", "waits"]


class EfficientProbes(ProbeSchedule):
    r"""Whatever removes the most noise for its work: carried rows, a sweep with some number of probes, or nothing.

    At every snapshot the choice is made anew that has the highest :func:`~lightning_vamo.core.efficiency.efficiency`. The
    share of the noise that a sweep along the first ``q`` directions is expected to remove is

    .. math:: R_q = \sum_{j \le q} \bar\beta_j^2 \lambda_j

    with :math:`\lambda_j` the share of the noise in direction ``j``, which the directions' learning gives (random directions
    have :math:`1/d`), and :math:`\bar\beta_j` the mean over the last snapshot's steps of the coefficient that
    ``alpha="adaptive"`` found: 1 where rows are exact and fresh. Directions that were not probed are taken to do as well as the
    others did on average. The work is that of the sweep's forward passes.

    Carried rows cost no evaluation, and remove :math:`\sum_j \rho_j^2 \lambda_j`, with :math:`\rho_j` the correlation of the
    slopes with the rows of the epoch before. Where rows can be carried they are looked at first, and what they explain tells
    what a sweep's fresher rows would: see :func:`~lightning_vamo.core.schedules.decision.of_sweeps`.

    Less noise speeds up a training only where noise is what slows the training. So while the mean training loss falls by more
    than 6 % of itself from one epoch to the next, nothing is chosen but rows that cost nothing. While a choice is kept, the
    slowest fall since then counts, as less noise may be why the loss falls faster.

    In their first epochs rows explain more from one to the next. So rows that do not pay yet are kept for up to five epochs,
    while they remove more than 2 % of the noise, and a tenth more than the last time, if they would pay if they explained all.

    When nothing pays, the steps are plain. After a while all that was measured is forgotten, and what would pay if rows were
    good is tried again. If it is tried in vain, the next while is twice as long.

    The schedule needs ``alpha="adaptive"``.

    Args:
        maximum: The largest number of directions, at least 1. As many are learned, whether or not they are probed.
        retry_after: Snapshots with nothing after which what was measured is forgotten, at least 1.
        cost: Whether work is counted in ``"evaluations"`` of the model, of which a sweep's forward pass is a third of a step,
            or in ``"seconds"``, as a clock measures them. By default in seconds where these are known well enough, unless torch
            is set to use deterministic algorithms; else in evaluations.

    Raises:
        InvalidArgumentError: If an argument is not allowed.

    Attributes:
        chosen: The number of directions that was chosen last; None before the first choice.
        kind: What was chosen last.
        wait: Snapshots from a failure to the next try.
        waits: Whether carried rows wait for the fall of the loss alone.

    Example:
        >>> schedule = EfficientProbes(maximum=4)
        >>> schedule.decide(torch.tensor([0.6, 0.62, 0.63, 0.64])).probes
        1
        >>> schedule.decide(torch.tensor([0.1, 0.15, 0.18, 0.2])).probes
        0
    """

    def __init__(self, maximum: int = 16, retry_after: int = 5, cost: Cost | None = None) -> None:
        self.maximum = check_probes("maximum", maximum, 1)
        self.retry_after = check_probes("retry_after", retry_after, 1)
        if cost not in (None, "evaluations", "seconds"):
            raise InvalidArgumentError(f'`cost` must be "evaluations", "seconds" or None, got {cost!r}.')
        self.cost = cost
        self.chosen: int | None = None
        self.kind: Kind = "nothing"
        self.wait = retry_after
        self._forward: float | None = None
        self._factors: Tensor | None = None
        self._idle = 0
        self._retrying = False
        self._doubted = 0
        # What carried rows removed when they were judged last; None since they were chosen anew.
        self._carried: float | None = None
        # How many times in a row they were kept although they did not pay.
        self._hopes = 0
        # The slowest fall of the loss since the present choice, if the choice costs something.
        self._fell: float | None = None
        self.waits = False

    def probes_at(self, epoch: int) -> int:
        """The number that was chosen last, in every epoch; the maximum before the first choice."""
        return self.maximum if self.chosen is None else self.chosen

    def observe(self, factors: Tensor | None, forward: float | None) -> None:
        r"""Count what the probes of a snapshot removed and cost.

        Args:
            factors: :math:`\bar\beta`, mean over the snapshot's steps, shape ``(q,)``; None if no step was corrected.
            forward: Time of a sweep's forward pass, relative to that of a training step on the same batch; None if unknown.
        """
        if factors is not None:
            self._factors = factors.detach().to("cpu", torch.float64)
        if forward is not None:
            self._forward = forward if self._forward is None else (self._forward + forward) / 2

    def rests(self, fall: float | None = None, *, others: bool = False) -> bool:
        """Whether the pause after a failure goes on, for which a call counts as one of its snapshots.

        Args:
            fall: See :meth:`decide`.
            others: Whether other parameters are trained than before, so that what failed may pay.

        Returns:
            Whether it does. If carried rows wait for the fall of the loss alone, the pause goes on as long as the loss falls as
            fast, and ends as soon as the loss does not.
        """
        vain, chosen = self.waits and not noise_limits(fall), self.chosen is not None
        if self.waits and fall is not None and not vain:
            self._idle, self.waits = self.wait if chosen else 0, False
        rests = vain or (chosen and not others and self._idle < self.wait)
        self._idle += rests and chosen
        return rests

    def decide(
        self,
        shares: Tensor | None,
        difference: Difference = "forward",
        sweeps: float | None = 1.0,
        carriable: Carriable | None = None,
        forward: float | None = None,
        fall: float | None = None,
    ) -> Decision:
        r"""Choose for the steps to come.

        Args:
            shares: :math:`\sum_{i \le j} \lambda_i`, the share of the noise's variance in the first :math:`j` directions, shape
                ``(maximum,)``; None while the shares are not known.
            difference: ``"forward"`` or ``"central"``.
            sweeps: How often a batch is probed per epoch, on average; None if there is to be no probing.
            carriable: What is known of carried rows; None if no rows can be carried.
            forward: Work of a sweep's forward pass, relative to a training step; by default what was observed.
            fall: By what share of itself the mean training loss has fallen from one epoch to the next of late; None if that is
                not known, and infinite if it is not known yet, since losses fall fast at first.

        Returns:
            The choice.
        """
        again = self._idle >= self.wait
        if shares is None:
            decision = plainly("probes=0: the gradient noise has not been measured yet")
            if carriable is not None:
                self._count(decision, tried=again)
            self.chosen, self.kind, self._fell, self.waits = 0, "nothing", None, False
            return decision
        if again:
            self._factors = self._forward = None
        own = torch.diff(shares.double(), prepend=shares.new_zeros(1, dtype=torch.float64))
        unmeasured = _HOPED_FORWARD if again else ASSUMED_FORWARD
        if forward is None:
            forward = unmeasured if self._forward is None else self._forward
        explained = None if carriable is None else carriable.explained
        swept = sweeps is not None and (carriable is None or explained is not None)
        removed = self._expected(own, explained) if swept else torch.zeros_like(own)
        since = slowest(fall, self._fell)
        of_rows, of_sweep = (noise_limits(since if self.kind == kind else fall) for kind in ("carry", "sweep"))
        values = efficiency(of_sweep * removed, forward, difference, sweeps or 0.0)
        carried, worth, hoped, perfect, counts = 0.0, -1.0, -1.0, 0.0, of_sweep
        if carriable is not None:
            carried = removed_by_rows(own, explained)
            hope = removed_by_rows(own, None) if explained is not None and self._rises(carried) else carried
            counts = of_rows or carriable.work == 1 or (carriable.cheap and explained is None)
            perfect = carriable.worth(hope)
            worth, hoped = (carriable.worth(counts * share) for share in (carried, hope))
        best = self._best(values, worth)
        hopes = best == 0 and hoped > max(1.0, worth) and self.kind in ("look", "carry") and self._hopes < _HOPES
        self._hopes = self._hopes + 1 if hopes else 0
        if hopes:
            best, self._doubted = -1, _PATIENCE - 1
        if again and carriable is None:
            best = min(best, 1)
        self.waits = best == 0 and not counts and perfect > _BETTER
        because = None if counts else fall
        decision = self._decision(best, own, removed, carriable, carried, forward, difference, sweeps, because)
        self._remember(decision, fall, carriable)
        self._count(decision, tried=again and carriable is not None, hopes=hopes)
        return decision

    def _remember(self, decision: Decision, fall: float | None, carriable: Carriable | None) -> None:
        """Keep the slowest fall of the loss since the present choice."""
        since = self._fell if decision.kind == self.kind else None
        costs = decision.kind == "sweep" or (decision.kind == "carry" and carriable is not None and carriable.work > 1)
        self._fell = slowest(fall, since) if costs or since is not None else None

    def _best(self, values: Tensor, worth: float) -> int:
        """The number of probes to choose, from the efficiency of each; -1 for carried rows, of the given efficiency."""
        best = int(values.argmax())
        best = -1 if worth > float(values[best]) else best
        self._doubted = self._doubted + 1 if self.kind == "carry" and worth >= 0 and best >= 0 else 0
        if 0 < self._doubted < _PATIENCE:
            return -1
        before = min(self.chosen or 0, len(values) - 1) if self.kind in ("nothing", "sweep") else -1
        if before < 0 and worth < 0:
            before = 0
        then, now = (worth if one < 0 else float(values[one]) for one in (before, best))
        return before if now < _BETTER * then and (before == 0 or then > 1) else best

    def _rises(self, carried: float) -> bool:
        """Whether carried rows remove more than when they were judged last, or are judged for the first time."""
        before, self._carried = self._carried, carried
        return carried > _LEAST and (before is None or carried > _RISING * before)

    def _expected(self, own: Tensor, explained: Tensor | None) -> Tensor:
        """Shares that a sweep along the first ``1..q`` directions is expected to remove."""
        squares = torch.ones_like(own) if explained is None else of_sweeps(surely(padded(explained, len(own))))
        if self._factors is not None:
            squares = padded(self._factors, len(own)).square()
        return (squares * own).cumsum(0).clamp(max=MOST)

    def _decision(
        self,
        best: int,
        own: Tensor,
        removed: Tensor,
        carriable: Carriable | None,
        carried: float,
        forward: float,
        difference: Difference,
        sweeps: float | None,
        fall: float | None,
    ) -> Decision:
        if best < 0 and carriable is not None:
            afresh = carriable.explained is None and self._idle > 0
            return carry_decision(len(own), carried, carriable, afresh=afresh, hopes=self._hopes > 0)
        if best == 0 and carriable is not None:
            known = carriable.explained is not None
            return no_carry_decision(carried, carriable.work, measured=known, before=self.kind, fall=fall)
        work = work_factor(len(own), forward, difference, sweeps or 0.0)
        afresh = best > 0 and self._factors is None and self._idle > 0
        values = efficiency(removed, forward, difference, sweeps or 0.0)
        return sweep_decision(best, int(values[1:].argmax()) + 1, removed, work, afresh=afresh, fall=fall)

    def _count(self, decision: Decision, *, tried: bool, hopes: bool = False) -> None:
        """Count the snapshots with nothing, and set the wait until the next try, after a look in a pause if ``tried``."""
        retried = self._retrying or (tried and not decision.probes)
        if retried and not hopes:
            self.wait = self.retry_after if decision.probes else 2 * self.wait
        self._retrying = decision.afresh or (retried and hopes)
        self._idle = 0 if decision.probes else 1 if tried else self._idle + 1
        self.chosen, self.kind = decision.probes, decision.kind
        if decision.kind != "carry":
            self._carried = None

    def state_dict(self) -> dict[str, Any]:
        """All that was measured and chosen, as plain types and tensors."""
        return {name.removeprefix("_"): getattr(self, name) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Args:
            state: The state.
        """
        for name in _STATE:
            setattr(self, name, state[name.removeprefix("_")])
        self.chosen = None if self.chosen is None else min(self.chosen, self.maximum)
