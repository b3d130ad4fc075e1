"""Rows: what gives the coefficients of a correction, batch by batch."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, small


class Rows(ABC):
    r"""Where the coefficients of a correction come from.

    A *row* belongs to a batch. It says what the batch's gradient is along each direction, against the mean over all batches.

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
        """Mean square of the centred rows of each direction, shape ``(q,)``; None if the coming steps meet rows like these.

        With a spread, a coefficient that adapts trusts the rows only as far as they have proved right.
        """
        return None

    @abstractmethod
    def correction(self, key: Any) -> Tensor:
        """Coefficients along the directions of the control variate of one batch.

        Args:
            key: What stands for the batch: its position in the plan, or its row itself.

        Returns:
            Shape ``(q,)``, in loss units per unit of parameter norm.
        """

    def row(self, key: Any) -> Small:
        """What :meth:`correction` gives, as numbers for small arithmetic.

        Args:
            key: See :meth:`correction`.

        Returns:
            Shape ``(q,)``.
        """
        return small(self.correction(key))

    def refresh(  # noqa: B027 -- most rows stay as they were measured
        self, keys: Sequence[Any], slopes: Slopes, accumulated: int = 1
    ) -> None:
        """Learn the slopes of a step's gradient, after its rows have been used; nothing unless rows change with the steps.

        Args:
            keys: What stands for the batches whose gradients the step accumulated.
            slopes: What the step's uncorrected gradient is along the directions.
            accumulated: The number that each of the batches' losses was divided by.
        """
