"""Statistics of the derivatives that an epoch's steps have used."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Tally:
    """Sums over the derivatives that an epoch's steps have used.

    Attributes:
        derivatives: Number of derivatives.
        squares: Sum of the squares of the derivatives.
        clipped: Number of derivatives that were clipped.
        not_finite: Number of derivatives that were not finite, and were left out.
    """

    derivatives: int = 0
    squares: float = 0.0
    clipped: int = 0
    not_finite: int = 0

    def add(self, found: Tensor, used: Tensor) -> None:
        """Count a step.

        Args:
            found: The measured derivatives of the step, of any shape.
            used: The derivatives after clipping, of the same shape.
        """
        finite = found.isfinite()
        self.derivatives += found.numel()
        self.squares += float(found[finite].square().sum())
        self.clipped += int((finite & (used != found)).sum())
        self.not_finite += int((~finite).sum())

    def figures(self) -> dict[str, float]:
        """The figures to log; none if there were no steps."""
        finite = self.derivatives - self.not_finite
        if not self.derivatives:
            return {}
        figures: dict[str, float] = {"derivative": (self.squares / finite) ** 0.5} if finite else {}
        return {**figures, "clipped": self.clipped / self.derivatives, "not_finite": self.not_finite}
