"""Statistics of the derivatives that an epoch's steps have used."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_warn


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

    def add(self, found: Sequence[float], used: Sequence[float]) -> None:
        """Count a step.

        Args:
            found: The measured derivatives of the step.
            used: As many, after clipping.
        """
        pairs = list(zip(found, used, strict=True))
        finite = [(one, other) for one, other in pairs if math.isfinite(one)]
        self.derivatives += len(pairs)
        self.squares += sum(one * one for one, _ in finite)
        self.clipped += sum(other != one for one, other in finite)
        self.not_finite += len(pairs) - len(finite)

    def figures(self) -> dict[str, float]:
        """The figures to log; none if there were no steps."""
        finite = self.derivatives - self.not_finite
        if not self.derivatives:
            return {}
        figures: dict[str, float] = {"derivative": (self.squares / finite) ** 0.5} if finite else {}
        return {**figures, "clipped": self.clipped / self.derivatives, "not_finite": self.not_finite}


def one_more_lost(lost: int, name: str, step: int, settings: str) -> int:
    """Count a step that leaves out a loss, and warn of the first: a run could move nothing, and look like any other.

    Args:
        lost: The number of such steps before.
        name: Name of the callback.
        step: The number of optimizer steps before.
        settings: What to make smaller.

    Returns:
        The number of such steps.
    """
    if not lost:
        rank_zero_warn(
            f"{name}: a loss is not finite at a point that step {step} compares, so the step leaves the point out and moves the"
            f" weights less, or not at all. The report counts such steps. If there are many, set a smaller {settings}."
        )
    return lost + 1
