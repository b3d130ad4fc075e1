"""A choice among nothing, carried rows and a sweep, with its reason in words."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_vamo.core.efficiency import batch_factor

Kind = Literal["nothing", "look", "carry", "sweep"]
"""What corrects the steps to come: nothing; nothing yet, as a look learns or fills a table; carried rows; or a sweep's rows."""

NUMBERS: dict[Kind, int] = {"nothing": 0, "look": 1, "carry": 2, "sweep": 3}
"""The numbers that stand for the kinds in logs."""

KEPT = 1.02
"""What carried rows have to be worth even if they take no time: their batches keep their composition, which costs a little."""

FEWEST = 5
"""The fewest epochs with which corrections that take time may begin: two tell how fast the loss falls, in the third directions
are learned, the fourth fills a table of rows, and in the fifth the rows are judged, and used."""

CHEAP = 0.02
"""The share of the time to come that may be spent to judge rows although noise does not limit the training yet."""

MOST = 0.99
"""No directions remove all of the noise, whatever an estimate says."""


@dataclass(frozen=True)
class Carriable:
    r"""What is known of carried rows, where the data allow them.

    Attributes:
        explained: The share of each direction's noise that the rows explain, shape ``(q,)``; None while no epoch has measured
            the shares.
        work: Work of a step with carried rows, relative to a plain step: 1 by evaluations.
        trial: The share of the steps to come that it takes to judge a table that is filled; None if no table is filled.
    """

    explained: Tensor | None = None
    work: float = 1.0
    trial: float | None = None

    @property
    def cheap(self) -> bool:
        """Whether rows can be judged in next to no time: they are there already, and the training is long."""
        return self.trial is not None and self.trial * (self.work - 1) <= CHEAP

    def worth(self, removed: float) -> float:
        """What rows are worth for their price if they remove a share of the noise: more than 1 if they pay."""
        return float(batch_factor(torch.tensor(removed))) / (self.work * KEPT)


@dataclass(frozen=True)
class Decision:
    """A choice, and its reason.

    Attributes:
        probes: ``q``, the number of directions that are probed, or along which rows are carried; 0 for nothing.
        removed: Share of the noise's variance that they are expected to remove.
        work: The work of training with them, relative to training without.
        afresh: Whether something is tried again, and what was measured earlier is forgotten.
        reason: The same in words.
        kind: What is chosen. ``"look"``: rows are to be carried, once their table is filled and they have been judged.
    """

    probes: int
    removed: float
    work: float
    afresh: bool
    reason: str
    kind: Kind = "nothing"


def plainly(reason: str) -> Decision:
    """Choose nothing.

    Args:
        reason: Why.

    Returns:
        The decision.
    """
    return Decision(0, 0.0, 1.0, False, reason)


def sweep_decision(
    probes: int, best: int, removed: Tensor, work: Tensor, *, afresh: bool, fall: float | None = None
) -> Decision:
    """Choose a sweep, or say why no number of probes pays.

    Args:
        probes: The number chosen.
        best: The best number above 0.
        removed: Shares that ``1..q`` probes are expected to remove, shape ``(q,)``.
        work: Their work, with that of no probe before it, shape ``(q + 1,)``.
        afresh: See :class:`Decision`.
        fall: As for :func:`no_carry_decision`.

    Returns:
        The decision.
    """
    looked = probes or best
    share, times = float(removed[looked - 1]), float(work[looked])
    larger = float(batch_factor(removed[looked - 1]))
    expected = f"expected to remove {100 * share:.2g} % of the gradient noise, as a {larger:.2f} times larger batch would, for"
    expected += f" {times:.2f} times the work of plain training"
    if probes:
        return Decision(probes, share, times, afresh, f"probes={probes}: {expected}", "sweep")
    more = "" if fall is None or (1 - share) * times >= 1 else f"; but {not_yet(fall)}"
    return Decision(0, 0.0, 1.0, afresh, f"probes=0: the best number above 0, {best}, is {expected}{more}")


def carry_decision(count: int, removed: float, carriable: Carriable, *, afresh: bool, hopes: bool = False) -> Decision:
    """Choose carried rows.

    Args:
        count: ``q``, the number of directions.
        removed: Share of the noise that the rows remove, or would remove if they were perfect.
        carriable: What is known of carried rows.
        afresh: See :class:`Decision`.
        hopes: Whether the rows do not pay, but are kept as they may.

    Returns:
        The decision.
    """
    what = f"carried rows along {_directions(count)}"
    share, work = f"{100 * removed:.0f} % of the gradient noise", carriable.work
    if hopes:
        return Decision(count, removed, work, afresh, f"{what} remove {share} so far, and are kept while that rises", "carry")
    if carriable.explained is not None:
        return Decision(count, removed, work, afresh, f"{what} remove {share} at no extra evaluation", "carry")
    then = "the next steps judge them" if carriable.trial is not None else "an epoch fills their table"
    return Decision(count, removed, work, afresh, f"{what} may remove up to {share}: {then}", "look")


def no_carry_decision(removed: float, work: float, *, measured: bool, before: Kind, fall: float | None = None) -> Decision:
    """Choose nothing, since carried rows do not pay.

    Args:
        removed: Share of the noise that the rows remove, or would remove if they were perfect.
        work: See :class:`Carriable`.
        measured: Whether the share is that of rows.
        before: What was chosen before.
        fall: By what share of itself the training loss falls in an epoch, if that is why noise counts for nothing; else None.

    Returns:
        The decision.
    """
    price = "" if work < 1.005 else f" for {work:.2f} times the time of a step"
    share = f"{100 * removed:.2g} % of the gradient noise"
    if price and fall is not None and (1 - removed) * work < 1:
        reason = f"carried rows {'remove' if measured else 'could remove'} {share}{price}, but {not_yet(fall)}"
    elif not measured:
        reason = f"carried rows could remove {share} at most{price}"
    elif removed < 0.005:
        reason = "nothing is removed any more" if before in ("carry", "sweep") else "carried rows remove nothing"
    else:
        reason = f"carried rows remove no more than {share}{price}"
    return plainly(reason)


def not_yet(fall: float) -> str:
    """Say that noise does not limit the training.

    Args:
        fall: By what share of itself the training loss falls in an epoch; infinite if that is not known yet.

    Returns:
        The words.
    """
    if math.isinf(fall):
        return "whether noise limits is not known yet: two whole epochs tell how fast the loss falls"
    return f"noise does not limit yet: the loss falls by {100 * fall:.2g} % an epoch"


def _directions(count: int) -> str:
    return "1 direction" if count == 1 else f"{count} directions"


def of_sweeps(explained: Tensor) -> Tensor:
    r"""The share of each direction's noise that a sweep's rows would explain, from what rows of the epoch before explain.

    If what rows explain falls exponentially with their age, from 1 to :math:`\rho^2` within an epoch, then rows whose ages go
    from 0 to an epoch explain on average

    .. math:: \int_0^1 \rho^{2a}\, da = \frac{1 - \rho^2}{-\ln \rho^2}

    Carried rows are means over several epochs, which the formula takes for rows of the epoch before.

    Args:
        explained: :math:`\rho^2`, shape ``(q,)``, from 0 to 1.

    Returns:
        The averages, of the same shape.
    """
    share = explained.double().clamp(1e-6, 1 - 1e-6)
    return (1 - share) / -torch.log(share)


def surely(explained: Tensor, steps: int = 64) -> Tensor:
    r"""What rows explain, less the standard error of squared correlations that as many steps have shown.

    .. math:: \rho^2 - \frac{2 \rho\,(1 - \rho^2)}{\sqrt{n}}

    Args:
        explained: :math:`\rho^2`, shape ``(q,)``, from 0 to 1.
        steps: :math:`n`.

    Returns:
        The shares, of the same shape, not below 0.
    """
    least: Tensor = (explained - 2 * explained.sqrt() * (1 - explained) / steps**0.5).clamp(min=0)
    return least


def padded(measured: Tensor, count: int) -> Tensor:
    """Figures of ``count`` directions; those that were not measured are taken to be the mean of the others.

    Args:
        measured: Figures of the first directions, shape ``(p,)``.
        count: ``q``.

    Returns:
        Shape ``(q,)``, float64.
    """
    known = measured.double()[:count]
    return torch.cat((known, measured.double().mean().expand(count - len(known))))


def removed_by_rows(own: Tensor, explained: Tensor | None) -> float:
    """The share of the noise that carried rows remove.

    Args:
        own: Share of the noise along each direction, shape ``(q,)``.
        explained: The share of each direction's noise that the rows explain, shape ``(p,)``; None if that is not known. Then
            the rows are taken to be perfect.

    Returns:
        The share, at most 0.99.
    """
    shares = own if explained is None else padded(explained, len(own)) * own
    return float(shares.sum().clamp(0, MOST))
