"""Rows: the numbers of each batch that determine its correction."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, small


class Rows(ABC):
    r"""Base class of tables and other sources of rows: a row gives the coefficients of a batch's correction.

    A *row* belongs to a batch: along each direction, it says how the batch's gradient differs from the mean of all batches.

    Attributes:
        beta: The effective coefficient :math:`\beta = \alpha d/q` that rows are multiplied by; at 0 nothing is corrected.
        ready: Whether there is a row to correct with.
        wants_slopes: Whether :meth:`refresh` uses the slopes of each step's gradient.
    """

    beta: float
    ready: bool = True
    wants_slopes: bool = False

    @property
    def spread(self) -> Small | None:
        """Mean square of the centred rows of each direction, shape ``(q,)``; None if the rows are fresh and can be trusted.

        With a spread, an adaptive coefficient trusts the rows only as far as the steps have confirmed them.
        """
        return None

    @abstractmethod
    def correction(self, key: Any) -> Tensor:
        """Coefficients of a batch's control variate along the directions.

        Args:
            key: The batch's position in the plan, or the batch's row itself.

        Returns:
            Shape ``(q,)``, in loss units per unit of parameter norm.
        """

    def row(self, key: Any) -> Small:
        """The coefficients of :meth:`correction`, as numbers for :mod:`~lightning_vamo.core.small` arithmetic.

        Args:
            key: See :meth:`correction`.

        Returns:
            Shape ``(q,)``.
        """
        return small(self.correction(key))

    def refresh(  # noqa: B027 -- most rows stay as they were measured
        self, keys: Sequence[Any], slopes: Slopes, accumulated: int = 1
    ) -> None:
        """Replace rows by the slopes of a step's gradient, after the step has used the rows; by default, do nothing.

        Args:
            keys: The keys of the batches whose gradients the step accumulated: see :meth:`correction`.
            slopes: The slopes of the step's uncorrected gradient along the directions.
            accumulated: The number that the loss of each batch was divided by.
        """
