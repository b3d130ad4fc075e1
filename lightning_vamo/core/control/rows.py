"""What gives the coefficients of a correction."""

from typing import Any, Protocol

from torch import Tensor


class Rows(Protocol):
    """Where the coefficients of a correction come from."""

    beta: float

    def correction(self, row: Any) -> Tensor:
        """Coefficients along the directions of the control variate of one batch, shape ``(q,)``."""
