"""The mean training loss from epoch to epoch."""

import math
from typing import Any

from torch import Tensor

from lightning_vamo.core.numerics import at_least_float32

# The share of the most losses that an epoch has to have to count as a whole one.
_WHOLE = 0.75


class EpochLosses:
    """Sums of the losses of the present epoch and of the three before, of which a measured choice reads the fall.

    Attributes:
        accumulated: How many batches an optimizer step has, by which Lightning divides the loss of each.
    """

    def __init__(self) -> None:
        self.accumulated = 1
        self._epochs: list[int] = []
        self._counts: list[int] = []
        self._sums: list[Tensor | float] = []

    def begin_epoch(self, epoch: int) -> None:
        """Begin with an epoch, or go on with it after a resume.

        Args:
            epoch: Its number.
        """
        if self._epochs[-1:] != [epoch]:
            self._epochs, self._counts, self._sums = (
                [*self._epochs[-3:], epoch],
                [*self._counts[-3:], 0],
                [*self._sums[-3:], 0.0],
            )

    def add(self, outputs: Any) -> None:
        """Count a batch; nothing waits for a GPU.

        Args:
            outputs: The outputs of the batch's step, with its loss; empty if there was none.
        """
        loss = outputs.get("loss") if outputs else None
        if isinstance(loss, Tensor) and self._epochs:
            self._counts[-1] += 1
            # On a CPU the number is there to read; a tensor would cost three further calls per step.
            value = loss.item() if loss.is_cpu else loss.detach().to(at_least_float32(loss.dtype))
            self._sums[-1] = self._sums[-1] + value * self.accumulated

    @property
    def early(self) -> bool:
        """Whether so few epochs have been seen that a fall which is not known may be known soon."""
        return len(self._epochs) < 4

    def fall(self) -> float | None:
        """By what share of itself the mean loss has fallen from one epoch to the next.

        Returns:
            The share, the mean over the last two falls before the present epoch, since noise makes single ones rise and fall;
            below zero where the loss has risen. The share of the last fall alone, if no more epochs have been seen as a whole;
            None if none has, or if a loss was not finite. An epoch with less than three quarters of the most losses, as one in
            which the training was resumed, has not been seen as a whole.
        """
        seen: list[tuple[int, float]] = []
        most = max(self._counts[:-1], default=0)
        for epoch, count, total in list(zip(self._epochs, self._counts, self._sums, strict=True))[-2::-1]:
            if epoch != self._epochs[-1] - len(seen) - 1 or not count or count < _WHOLE * most:
                break
            seen.append((count, float(total)))
        if len(seen) < 2:
            return None
        (first, before), (last, after) = seen[-1], seen[0]
        if first != last:
            before, after = before / first, after / last
        return (before - after) / abs(before) / (len(seen) - 1) if before and math.isfinite(before - after) else None

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain types and tensors."""
        sums = [each if isinstance(each, float) else each.cpu() for each in self._sums]
        return {"epochs": self._epochs, "counts": self._counts, "sums": sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`.

        Args:
            state: The state.
        """
        self._epochs, self._counts, self._sums = (list(state[name]) for name in ("epochs", "counts", "sums"))
