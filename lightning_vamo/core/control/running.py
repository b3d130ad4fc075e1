r"""The control variate of rows that each step computes itself; the mean comes from a sweep, or is a running mean."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.control.rows import Rows


class RecomputedControlVariate(Rows):
    r"""Centres probe differences that each step evaluates for its own batch.

    .. math:: r_{k,j} = \beta\,(\delta_{k,j} - \bar\delta_j)

    With :math:`\bar\delta_j` the mean over all samples, this is the paper's control variate. If that mean is not known,
    :math:`\bar\delta_j` is the mean over the rows since the snapshot, including the step's own row:

    .. math:: \delta_k - \frac{1}{k} \sum_{i \le k} \delta_i
        = \frac{k-1}{k} \Bigl(\delta_k - \frac{1}{k-1} \sum_{i<k} \delta_i\Bigr)

    The right-hand side subtracts the mean of the earlier rows, which has the same expectation if all batches are drawn alike.
    So the corrected gradient stays unbiased, and :math:`(k-1)/k` is the coefficient that leaves the least variance with a mean
    of :math:`k-1` rows. The first step has no correction.

    A probe difference that is not finite has no part in the running mean, and its coefficient is zero.

    Args:
        beta: The effective coefficient :math:`\beta = \alpha d/q`.
        mean: The mean of the rows over all samples, shape ``(q,)``; None for a running mean.

    References:
        Chen & Ma, arXiv:2505.13954, Algorithm 1.
    """

    def __init__(self, beta: float, mean: Tensor | None = None) -> None:
        self.beta = beta
        self._known = mean
        # Over the rows since the snapshot, float64: sums and numbers of the finite entries; number of rows with other entries.
        self._sum: Tensor | None = None
        self._count: Tensor | None = None
        self._unused: Tensor | None = None

    @property
    def mean(self) -> Tensor | None:
        """The mean that is subtracted from rows, shape ``(q,)``; None for a running mean that has no row yet."""
        if self._known is not None or self._sum is None or self._count is None:
            return self._known
        return self._sum / self._count

    @property
    def unused(self) -> float:
        """The number of rows since the snapshot with an entry that was not finite."""
        return 0.0 if self._unused is None else float(self._unused)

    def see(self, rows: Sequence[Tensor]) -> None:
        """Add the rows of a step to the running mean, before the step's correction.

        Args:
            rows: Probe differences, each of shape ``(q,)``.
        """
        if not rows:
            return
        stacked = torch.stack(list(rows)).double()
        finite = stacked.isfinite()
        if self._sum is None or self._count is None or self._unused is None:
            self._sum, self._count = torch.zeros_like(stacked[0]), torch.zeros_like(stacked[0])
            self._unused = torch.zeros_like(stacked[0, 0])
        self._sum = self._sum + torch.where(finite, stacked, 0.0).sum(dim=0)
        self._count = self._count + finite.sum(dim=0)
        self._unused = self._unused + (~finite.all(dim=1)).sum()

    def correction(self, key: Tensor) -> Tensor:
        """Coefficients of a batch's control variate along the directions.

        Args:
            key: The batch's probe differences, shape ``(q,)``, which :meth:`see` has counted.

        Returns:
            Shape ``(q,)``, in loss units per unit of parameter norm, on the row's device.
        """
        if self.mean is None:
            return torch.zeros_like(key)
        centred = key.double() - self.mean
        return torch.where(centred.isfinite(), self.beta * centred, 0.0).to(key.dtype)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, the mean and the sums, as plain types and tensors."""
        sums = {"sum": self._sum, "count": self._count, "unused": self._unused}
        return {"beta": self.beta, "mean": self._known, **sums}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "RecomputedControlVariate":
        """A control variate that continues from a state of :meth:`state_dict`."""
        control = cls(state["beta"], state["mean"])
        control._sum, control._count, control._unused = state["sum"], state["count"], state["unused"]
        return control
