"""How long training steps take, by the wall clock."""

import time
from dataclasses import dataclass
from typing import Any

import torch


def now(device: torch.device) -> float:
    """The time, in seconds, when a device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class StepClock:
    """Adds up the time from a snapshot's first step to its last, without sweeps and validation.

    Loading the batches is part of it, as it is part of a sweep's time.

    Attributes:
        seconds: What has been added up.
        batches: How many batches were trained on in it.
    """

    seconds: float = 0.0
    batches: int = 0
    _since: float | None = None

    def batch_starts(self) -> None:
        """Go on, unless it is going, and count a batch."""
        self.batches += 1
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        """Stand still until the next batch.

        Args:
            device: Where the steps run; what it has been given to do is waited for.
        """
        if self._since is not None:
            self.seconds += now(device) - self._since
            self._since = None

    def per_batch(self) -> float | None:
        """Seconds per batch, None if there were none, and begin anew."""
        mean = self.seconds / self.batches if self.batches else None
        self.seconds, self.batches = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """What has been added up so far, as plain numbers."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"seconds": self.seconds + running, "batches": self.batches}
