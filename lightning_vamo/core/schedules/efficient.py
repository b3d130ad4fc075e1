r"""The number of probes that removes the most noise for its work, chosen by measurement."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.efficiency import batch_factor, efficiency, work_factor
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes

# The time of a forward pass relative to a training step, before it is measured: the backward pass takes about two thirds.
_ASSUMED_FORWARD = 1 / 3
# The same time for a retry, which hopes that probes have become cheaper.
_HOPED_FORWARD = 1 / 10
# Clocks and spectra are noisy: a number of probes that pays is kept until another number is better by this factor.
_BETTER = 1.05
# No directions remove all of the noise, whatever an estimate says.
_MOST = 0.99


@dataclass(frozen=True)
class Decision:
    """A chosen number of probes, and the reason.

    Attributes:
        probes: ``q``.
        removed: Share of the noise's variance that the probes are expected to remove.
        work: The work of training with the probes, relative to training without probes.
        afresh: Whether probes are tried again, after all measurements of earlier probes were forgotten.
        reason: The reason in words, for the log.
    """

    probes: int
    removed: float
    work: float
    afresh: bool
    reason: str


class EfficientProbes(ProbeSchedule):
    r"""The number of probes that removes the most noise for its work, up to a maximum; 0 if no number pays.

    At every snapshot, the schedule chooses the number with the highest :func:`~lightning_vamo.core.efficiency.efficiency`. The
    share of the noise that the first ``q`` directions are expected to remove is

    .. math:: R_q = \sum_{j \le q} \bar\beta_j^2 \lambda_j

    with :math:`\lambda_j` the share of the noise in direction ``j``, which is measured as the directions are learned (for
    random directions, :math:`1/d`), and :math:`\bar\beta_j` the coefficient that ``alpha="adaptive"`` found, averaged over the
    steps of the last snapshot: 1 if rows are exact and fresh. Directions that were not probed count like the average of the
    probed directions. The work is that of the sweep's forward passes, whose time relative to a training step is measured.

    When no number of probes pays, training goes on without probes, and the directions are still learned. After a number of
    snapshots all measurements are forgotten. If good coefficients and cheap forward passes would make probes pay, a single
    probe is tried. If the probe does not pay, the schedule waits twice as long before the next attempt.

    The schedule needs ``alpha="adaptive"``.

    Args:
        maximum: The largest number of probes, at least 1. As many directions are learned, whether or not they are probed.
        retry_after: Number of snapshots without probes after which the measurements are forgotten, at least 1.

    Raises:
        InvalidArgumentError: If an argument is not allowed.

    Attributes:
        chosen: The number of probes that was chosen last; None before the first choice.

    Example:
        >>> schedule = EfficientProbes(maximum=4)
        >>> schedule.decide(torch.tensor([0.6, 0.62, 0.63, 0.64])).probes
        1
        >>> schedule.decide(torch.tensor([0.1, 0.15, 0.18, 0.2])).probes
        0
    """

    def __init__(self, maximum: int, retry_after: int = 5) -> None:
        self.maximum = check_probes("maximum", maximum, 1)
        self.retry_after = check_probes("retry_after", retry_after, 1)
        self.chosen: int | None = None
        self._forward: float | None = None
        self._factors: Tensor | None = None
        self._idle = 0
        self._wait = retry_after
        self._retrying = False

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

    def decide(self, shares: Tensor | None, difference: Difference = "forward", sweeps: float = 1.0) -> Decision:
        r"""Choose the number of probes for the coming snapshot.

        Args:
            shares: :math:`\sum_{i \le j} \lambda_i`, the share of the noise's variance in the first :math:`j` directions, shape
                ``(maximum,)``; None while the shares are not known.
            difference: ``"forward"`` or ``"central"``.
            sweeps: Sweeps per epoch, on average.

        Returns:
            The choice.
        """
        if shares is None:
            self.chosen = 0
            return Decision(0, 0.0, 1.0, False, "probes=0: the gradient noise has not been measured yet")
        again = self._idle >= self._wait
        if again:
            self._factors = self._forward = None
        removed = self._expected(shares.double())
        unmeasured = _HOPED_FORWARD if again else _ASSUMED_FORWARD
        forward = unmeasured if self._forward is None else self._forward
        values = efficiency(removed, forward, difference, sweeps)
        best, before = int(values.argmax()), min(self.chosen or 0, self.maximum)
        if float(values[best]) < _BETTER * float(values[before]) and (before == 0 or float(values[before]) > 1):
            best = before
        if again:
            best = min(best, 1)
        afresh = best > 0 and self._factors is None and self._idle > 0
        self._count(best, afresh)
        work = work_factor(self.maximum, forward, difference, sweeps)
        return _decision(best, int(values[1:].argmax()) + 1, removed, work, afresh)

    def _expected(self, shares: Tensor) -> Tensor:
        factors = torch.ones_like(shares)
        if self._factors is not None:
            measured = self._factors[: len(shares)]
            factors[:] = measured.mean()
            factors[: len(measured)] = measured
        own = torch.diff(shares, prepend=shares.new_zeros(1))
        return (factors.square() * own).cumsum(0).clamp(max=_MOST)

    def _count(self, probes: int, afresh: bool) -> None:
        """Count the snapshots without probes, and set the wait until the next attempt."""
        if self._retrying:
            self._wait = self.retry_after if probes else 2 * self._wait
        self._retrying = afresh
        self._idle = 0 if probes else self._idle + 1
        self.chosen = probes

    def state_dict(self) -> dict[str, Any]:
        """All that was measured and chosen, as plain types and tensors."""
        return {
            "chosen": self.chosen,
            "forward": self._forward,
            "factors": self._factors,
            "idle": self._idle,
            "wait": self._wait,
            "retrying": self._retrying,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Args:
            state: The state.
        """
        chosen = state["chosen"]
        self.chosen = None if chosen is None else min(chosen, self.maximum)
        self._forward, self._factors = state["forward"], state["factors"]
        self._idle, self._wait, self._retrying = state["idle"], state["wait"], state["retrying"]


def _decision(probes: int, best: int, removed: Tensor, work: Tensor, afresh: bool) -> Decision:
    """Explain the choice; if no number pays, say why the best number above 0 does not."""
    looked = probes or best
    share, times = float(removed[looked - 1]), float(work[looked])
    larger = float(batch_factor(removed[looked - 1]))
    expected = f"expected to remove {100 * share:.2g} % of the gradient noise, as a {larger:.2f} times larger batch would, for"
    expected += f" {times:.2f} times the work of plain training"
    if probes:
        return Decision(probes, share, times, afresh, f"probes={probes}: {expected}")
    return Decision(0, 0.0, 1.0, afresh, f"probes=0: the best number above 0, {best}, is {expected}")
