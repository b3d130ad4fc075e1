r"""Coefficients that say how much of each row a step uses: constant, by a schedule, or measured."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, library, placed, running_count, small, stacked, tensor_of, within_one, zeros


class Coefficient(ABC):
    r"""Factors :math:`\beta_j` for the rows of a table, one per direction.

    Attributes:
        wants_slopes: Whether :meth:`observe` uses the slopes of each step's gradient.
    """

    wants_slopes: bool = False

    @abstractmethod
    def factors(self, progress: float) -> Tensor | float:
        r"""The factors for the next step.

        Args:
            progress: Share of the snapshot's batches that has been trained on, in ``[0, 1)``.

        Returns:
            :math:`\beta`, shape ``(q,)`` or one number for all directions.
        """

    def numbers(self, progress: float, spread: Small | None = None) -> Small:
        """The numbers of :meth:`factors`, in the form that :mod:`~lightning_vamo.core.small` computes with.

        Args:
            progress: See :meth:`factors`.
            spread: See :class:`~lightning_vamo.core.control.rows.Rows`; only a measured coefficient uses the spread.

        Returns:
            See :meth:`factors`.
        """
        factors = self.factors(progress)
        return small(factors) if isinstance(factors, Tensor) else factors

    def observe(self, slopes: Slopes, row: Small) -> None:  # noqa: B027 -- most schedules use no measurement
        """Measure a step's gradient and row, after the step has read its factors; by default, do nothing.

        Args:
            slopes: The slopes of the uncorrected gradient along the directions.
            row: The centred row of the table that belongs to the step, shape ``(q,)``.
        """


class Constant(Coefficient):
    """A coefficient that is always 1: rows are used as they are."""

    def factors(self, progress: float) -> float:
        """See :meth:`Coefficient.factors`."""
        return 1.0


class LinearDecay(Coefficient):
    r"""A coefficient that falls from 1 to 0 over the batches of each epoch, as the rows go stale: :math:`\beta = 1 - k/K`.

    Where rows are recomputed, the coefficient falls over all steps of the snapshot.

    References:
        Yin et al., "A Coefficient Makes SVRG Effective", arXiv:2311.05589, which lets the coefficient of SVRG decay linearly.
    """

    def factors(self, progress: float) -> float:
        """See :meth:`Coefficient.factors`."""
        return 1 - progress


class Regression(Coefficient):
    r"""The regression coefficient of the gradient's slopes on the rows, direction by direction.

    With :math:`c_t` the slope of a step's gradient along a direction and :math:`r_t` its centred row, the variance of
    :math:`c - \beta r` is least at

    .. math:: \beta = \frac{\operatorname{Cov}(c, r)}{\operatorname{Var}(r)},

    which is 1 where the rows are exact, and 0 where the rows say nothing about the gradient. Both moments are exponentially
    weighted means over the steps before, of which about the last ``memory`` count. While there are few steps, the estimate is
    drawn towards 1, the coefficient of a fresh and exact table, as if ``prior`` steps with such a table had come before:

    .. math:: \beta_t = \frac{W_t \operatorname{Cov}_t + \lambda_t \operatorname{Var}_t}{(W_t + \lambda_t) \operatorname{Var}_t}
        \quad\text{clipped to } [0, 1], \qquad W_t = \sum_{s < t} \gamma^{t-1-s}, \quad \lambda_t = \gamma^t\, \texttt{prior}.

    Rows that the steps of an earlier epoch have measured are not fresh. For such rows the estimate is drawn towards 0, and the
    mean square :math:`s^2` of their table stands for the prior's steps, so that small rows earn no trust for large rows:

    .. math:: \beta_t = \frac{W_t \operatorname{Cov}_t}{W_t \operatorname{Var}_t + 0.3\,\lambda_t s^2}
        \quad\text{clipped to } [0, 1].

    A step whose slope lies far from the others counts for less, so that the regression describes the usual steps: of a gradient
    with heavy tails, a single slope would otherwise decide the estimate of the next ``memory`` steps. With :math:`m` and
    :math:`s_c` the mean and the standard deviation of the slopes so far, a step counts with the weight
    :math:`\min(1, (4 s_c / |c - m|)^2)`. The weight is that of slope and row alike, so exact rows keep the estimate 1.

    The estimate is clipped because it is noisy: if the rows say nothing, the estimate has a standard deviation of about
    :math:`\sigma_c / (\sigma_r \sqrt{2\,\texttt{memory}})`, and half of the time the wrong sign. A coefficient above 1 would
    mean that the rows are too small; curvature can make them so for a while, rounding cannot.

    The factors of a step depend on earlier steps only, so the corrected gradient stays unbiased. From the 33rd step on the
    factors change after every eighth step, since the arithmetic for eight steps takes no longer than for one.

    Args:
        count: ``q``, the number of directions.
        memory: About how many of the last steps count: :math:`\gamma = 1 - 1/\texttt{memory}`.
        prior: How many imagined steps with a perfect table the first estimates lean on.
    """

    wants_slopes = True

    def __init__(self, count: int, memory: int = 100, prior: float = 10.0) -> None:
        self.memory = memory
        self.prior = prior
        # Exponentially weighted sums of c, r, c r, r r and 1, what is left of the prior's weight, and the sum of c c.
        self._sums = zeros(7, count, device=_CPU)
        self._sums[5] = prior
        # Slopes, row and count (1, or 0 for a gradient that is not finite) of the steps that are not in the sums yet.
        self._recent: list[tuple[Small, Small, Small]] = []
        self._steps = 0
        # The spread and the factors of the last answer, which holds until the sums change.
        self._answer: tuple[Small | None, Small] | None = None

    def factors(self, progress: float = 0.0) -> Tensor:
        """See :meth:`Coefficient.factors`."""
        return tensor_of(self.numbers(progress))

    def numbers(self, progress: float = 0.0, spread: Small | None = None) -> Small:
        """See :meth:`Coefficient.numbers`."""
        if self._answer is None or self._answer[0] is not spread:
            self._answer = (spread, self._estimate(spread))
        return self._answer[1]

    def _estimate(self, spread: Small | None) -> Small:
        if isinstance(spread, Tensor):
            self._sums = placed(self._sums, spread.device)  # before the first step of a run they are on the CPU
        _, r, _, _, weight, prior, _ = sums = self._sums
        # W^2 times the covariance and the variance.
        covariance, variance = weight * sums[2:4] - r * sums[:2]
        if spread is not None:
            return within_one(covariance / (variance + _DOUBT * prior * weight * spread + _TINY))
        # If all rows were the same, the estimate is 1.
        estimate = (covariance + _TINY) / (variance + _TINY)
        return within_one((weight * estimate + prior) / (weight + prior))

    @property
    def explained(self) -> Tensor:
        r"""The share of the slopes' variance that the rows explain, direction by direction.

        It is the squared correlation :math:`\rho^2`, of which is taken what as many steps would show by chance. It is what the
        best factor would remove, whatever factors have been used.

        Returns:
            Shape ``(q,)``, float64, on the CPU, from 0 to 1; zeros before there are a few steps.
        """
        c, r, both, square, weight, _, slopes = tensor_of(self._sums).cpu()
        covariance, variance = weight * both - c * r, weight * square - r * r
        correlation = covariance.square() / (variance * (weight * slopes - c * c)).clamp(min=_TINY)
        seen = weight.clamp(min=2)
        shares: Tensor = ((correlation - 1 / seen) / (1 - 1 / seen)).clamp(0, 1)
        return shares.where(weight > _FEW, torch.zeros_like(shares))

    def observe(self, slopes: Slopes, row: Small) -> None:
        """See :meth:`Coefficient.observe`.

        Args:
            slopes: The slopes of the uncorrected gradient along the directions. If the gradient is not finite, which makes the
                optimizer skip the step, the step is left out.
            row: The centred row of the table that belongs to the step, shape ``(q,)``.
        """
        counted = slopes.counted
        if not isinstance(counted, Tensor) and not counted:
            return
        if self._recent and type(self._recent[0][0]) is not type(row):  # steps of a checkpoint, which are on the CPU
            self._recent = [_placed(step, slopes.device) for step in self._recent]
        self._recent.append((slopes.coordinates, row, counted))
        self._steps += 1
        if self._steps <= _YOUNG or len(self._recent) == _MANY:
            self._add_up()

    def _add_up(self) -> None:
        """Add the recent steps to the sums, all with weights that come from the sums before them."""
        if not self._recent:
            return
        c, r, counted = (stacked(*part) for part in zip(*self._recent, strict=True))
        functions, fade, ends = library(c), 1 - 1 / self.memory, running_count(counted)
        self._sums = sums = placed(self._sums, c.device if isinstance(c, Tensor) else _CPU)
        weights = self._weights(c) * (counted * fade ** (ends[-1] - ends)).reshape(-1, 1)
        terms = stacked(c, r, c * r, r * r, functions.ones_like(c), functions.zeros_like(c), c * c)
        self._sums = sums * fade ** ends[-1] + (terms * weights).sum(1)
        self._recent, self._answer = [], None

    def _weights(self, slopes: Small) -> Small:
        """How much steps with these slopes count, direction by direction: less than 1 for slopes far from those in the sums."""
        total, _, _, _, weight, _, squares = self._sums
        bound = _DEVIATIONS**2 * (weight * squares - total * total)
        away = weight * slopes - total
        weights = within_one(bound / (away * away + _TINY))
        return library(weights).where((weight > _FEW) & (bound > 0), weights, library(weights).ones_like(weights))

    def resized(self, count: int) -> "Regression":
        """A regression for another number of directions: the first directions keep their sums, further ones begin anew."""
        self._add_up()
        other = Regression(count, self.memory, self.prior)
        sums, kept = tensor_of(self._sums), min(count, self._sums.shape[1])
        begun = tensor_of(other._sums).to(sums.device, copy=True)
        begun.narrow(1, 0, kept).copy_(sums.narrow(1, 0, kept))
        other._sums, other._steps = small(begun), self._steps
        return other

    def state_dict(self) -> dict[str, Any]:
        """The sums, and the steps that are not in the sums yet, as tensors."""
        recent = [tensor_of(stacked(*part)) for part in zip(*self._recent, strict=True)]
        return {"sums": tensor_of(self._sums), "steps": self._steps, "recent": recent}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Regression":
        """A regression that continues with the sums of :meth:`state_dict`."""
        regression = cls(state["sums"].shape[1])
        regression._sums, regression._steps = small(state["sums"]), state["steps"]
        regression._recent = list(zip(*map(small, state["recent"]), strict=True))
        return regression


def _placed(step: tuple[Small, Small, Small], device: torch.device) -> tuple[Small, Small, Small]:
    slopes, row, counted = (placed(np.asarray(part), device) for part in step)
    return slopes, row, counted


_TINY = 1e-300

_CPU = torch.device("cpu")

# Each of so many first steps is added to the sums at once; later steps are added so many at a time, which costs as much as one.
_YOUNG = 32
_MANY = 8

# As many steps say something of a correlation, and of a deviation.
_FEW = 8

# How many standard deviations a slope may lie from the mean and count fully.
_DEVIATIONS = 4.0

# Chosen on recorded trajectories (diamonds, digits, MNIST, interpolating regression), among a few values: this one is enough
# for rows that are 1,000 times too large, and loses little on rows that are right.
_DOUBT = 0.3
