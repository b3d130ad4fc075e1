"""Clocks for the time of training steps, and for work that a GPU does asynchronously."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


def now(device: torch.device) -> float:
    """The time in seconds, after a device has finished its pending work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class StepClock:
    """Adds up the time from a snapshot's first step to its last, without sweeps and validation.

    The time includes the loading of batches, as a sweep's time does.

    Attributes:
        seconds: The time so far.
        batches: Number of batches that were trained on in this time.
    """

    seconds: float = 0.0
    batches: int = 0
    _since: float | None = None

    def batch_starts(self) -> None:
        """Start the clock unless it runs, and count a batch."""
        self.batches += 1
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self, device: torch.device) -> None:
        """Stop the clock until the next batch.

        Args:
            device: The device of the steps; the clock waits for its pending work.
        """
        if self._since is not None:
            self.seconds += now(device) - self._since
            self._since = None

    def per_batch(self) -> float | None:
        """Seconds per batch, or None without batches; resets the clock."""
        mean = self.seconds / self.batches if self.batches else None
        self.seconds, self.batches = 0.0, 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, as plain numbers."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return {"seconds": self.seconds + running, "batches": self.batches}


class Stopwatch:
    """Adds up the time of pieces of work."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Add the time of the work in the context.

        Args:
            device: The device that does the work.

        Yields:
            Nothing.
        """
        if device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        events: Any = torch.cuda.Event
        begin, end = events(enable_timing=True), events(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._pending.append((begin, end))
        while self._pending[0][1].query() and len(self._pending) > 1:
            self._fold()

    def read(self) -> float:
        """The seconds so far; waits for pending work."""
        while self._pending:
            self._pending[0][1].synchronize()
            self._fold()
        return self._seconds

    def _fold(self) -> None:
        begin, end = self._pending.popleft()
        self._seconds += begin.elapsed_time(end) / 1000
