"""Time spent on work that a GPU may do later than it is asked to, measured without waiting for it."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Adds up the time of pieces of work."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Count what is done in the context.

        Args:
            device: Where it is done.

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
        """Seconds so far; waits for what is still being done."""
        while self._pending:
            self._pending[0][1].synchronize()
            self._fold()
        return self._seconds

    def _fold(self) -> None:
        begin, end = self._pending.popleft()
        self._seconds += begin.elapsed_time(end) / 1000
