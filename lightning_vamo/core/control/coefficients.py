r"""Coefficients that change from step to step: how much of each row to use, measured or by a schedule."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


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

    def observe(self, slopes: Tensor, row: Tensor) -> None:  # noqa: B027 -- most schedules look at nothing
        """See a step's gradient and its row, after the factors of its correction were taken; nothing unless they matter.

        Args:
            slopes: Coordinates of the uncorrected gradient along the directions, shape ``(q,)``.
            row: The centred row of the table that belongs to the step, shape ``(q,)``.
        """


class Constant(Coefficient):
    """Uses rows as they are."""

    def factors(self, progress: float) -> float:
        """See :meth:`Coefficient.factors`."""
        return 1.0


class LinearDecay(Coefficient):
    r"""Falls from 1 to 0 over the batches of each epoch, as the rows go stale: :math:`\beta = 1 - k/K`.

    Where rows are recomputed it falls over all steps of the snapshot.

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

    1 where the rows are what they were measured for, and 0 where they say nothing. Both are exponentially weighted means over
    the steps before, of which about the last ``memory`` count. While there are few, the estimate is drawn towards 1, the
    coefficient of a fresh and exact table, as if ``prior`` steps of that kind had been seen before the first:

    .. math:: \beta_t = \frac{W_t \operatorname{Cov}_t + \lambda_t \operatorname{Var}_t}{(W_t + \lambda_t) \operatorname{Var}_t}
        \quad\text{clipped to } [0, 1], \qquad W_t = \sum_{s < t} \gamma^{t-1-s}, \quad \lambda_t = \gamma^t\, \texttt{prior}.

    Clipped, because the estimate is noisy: with nothing in the rows it has a standard deviation of about
    :math:`\sigma_c / (\sigma_r \sqrt{2\,\texttt{memory}})`, and half of the time the wrong sign. Above 1 the rows would be
    taken for smaller than what they measure, which curvature can make true for a while and rounding cannot.

    The factors of a step depend on earlier steps only, so the corrected gradient stays unbiased.

    Args:
        count: ``q``, the number of directions.
        memory: How many steps count, about: :math:`\gamma = 1 - 1/\texttt{memory}`.
        prior: How many steps of a perfect table the first estimates lean on.
    """

    wants_slopes = True

    def __init__(self, count: int, memory: int = 100, prior: float = 10.0) -> None:
        self.memory = memory
        self.prior = prior
        # Exponentially weighted sums: of 1, and of c, r, c r and r r; and what is left of the prior's weight.
        self._weight = torch.zeros(count, dtype=torch.float64)
        self._sums = torch.zeros(4, count, dtype=torch.float64)
        self._prior = torch.full((count,), float(prior), dtype=torch.float64)

    def factors(self, progress: float = 0.0) -> Tensor:
        """See :meth:`Coefficient.factors`."""
        slope, row, product, square = self._sums / self._weight.clamp(min=1e-300)
        variance = square - row.square()
        covariance = product - slope * row
        estimate = torch.where(variance > 0, covariance / variance, 1.0)
        return ((self._weight * estimate + self._prior) / (self._weight + self._prior)).clamp(0, 1)

    def observe(self, slopes: Tensor, row: Tensor) -> None:
        """See :meth:`Coefficient.observe`.

        Args:
            slopes: Coordinates of the uncorrected gradient along the directions, shape ``(q,)``. If they are not finite, which
                makes the optimizer skip the step, the step is left out.
            row: The centred row of the table that belongs to the step, shape ``(q,)``.
        """
        c, r = slopes.double(), row.to(slopes.device).double()
        self._to(c.device)
        seen = torch.stack((c, r, c * r, r * r))
        finite = seen.isfinite().all()
        decay = 1 - finite.double() / self.memory
        self._sums = self._sums * decay + torch.where(finite, seen, 0.0)
        self._weight = self._weight * decay + finite
        self._prior = self._prior * decay

    def resized(self, count: int) -> "Regression":
        """For another number of directions: what is known of the first ones stays, others begin anew."""
        other = Regression(count, self.memory, self.prior)
        other._to(self._weight.device)
        kept = min(count, len(self._weight))
        other._weight[:kept], other._prior[:kept] = self._weight[:kept], self._prior[:kept]
        other._sums[:, :kept] = self._sums[:, :kept]
        return other

    def state_dict(self) -> dict[str, Any]:
        """The sums, as tensors."""
        return {"weight": self._weight, "sums": self._sums, "prior": self._prior}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Regression":
        """One that goes on from the sums of :meth:`state_dict`."""
        regression = cls(len(state["weight"]))
        regression._weight, regression._sums, regression._prior = state["weight"], state["sums"], state["prior"]
        return regression

    def _to(self, device: torch.device) -> None:
        self._weight, self._sums, self._prior = (part.to(device) for part in (self._weight, self._sums, self._prior))
