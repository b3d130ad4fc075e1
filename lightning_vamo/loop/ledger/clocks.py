"""Clocks for the time of training steps, and for work that a GPU does asynchronously."""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


def now(device: torch.device) -> float:
    """The time in seconds, after a device has finished its pending work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class StepTimes:
    """The times of training steps, by what corrected the steps: from the start of a batch to the start of the next batch.

    Loading the batches is part of them, as it is part of a sweep's time. Sweeps and validation are not.

    The speed of a machine changes within a run, with other work and with heat. So it is also kept how much of its own time each
    corrected step spent on learning and correcting.

    Attributes:
        seconds: The last of them, by a name for what corrected the steps.
        spent: The part of each that was spent on learning and correcting; 0 where that is not known, as on a GPU.
    """

    seconds: dict[str, deque[float]] = field(default_factory=dict)
    spent: dict[str, deque[float]] = field(default_factory=dict)
    _since: float | None = None
    _name: str = ""
    _spent: float = 0.0

    def __post_init__(self) -> None:
        """Keep no more of the given times than of others."""
        for kept in (self.seconds, self.spent):
            kept.update({name: deque(values, _TIMES) for name, values in kept.items()})

    def batch_starts(self, name: str) -> None:
        """Record that a batch starts which is trained on in a way that has the name."""
        now = time.perf_counter()
        if self._name != name:
            self._name = name
            for kept in (self.seconds, self.spent):
                kept.setdefault(name, deque(maxlen=_TIMES))
        elif self._since is not None:
            self.seconds[name].append(now - self._since)
            self.spent[name].append(self._spent)
        self._since, self._spent = now, 0.0

    def spend(self, seconds: float) -> None:
        """Record that the present batch spent time on learning or correcting."""
        self._spent += seconds

    def stop(self) -> None:
        """Forget the batch that has started last: other work follows than steps."""
        self._since = None

    def typical(self, name: str) -> float | None:
        """The time of a step of a name that is not held up: the lower quartile, since other work only makes steps longer.

        Args:
            name: The name.

        Returns:
            The seconds; None if there are too few steps.
        """
        times = self.seconds.get(name, ())
        return _quartile(times) if len(times) >= _FEWEST else None

    def longer(self, name: str) -> float | None:
        """How many times longer steps of a name take than the same steps would without learning and correcting.

        Lightning's own steps take somewhat longer than those, as the driver's way is shorter.

        Args:
            name: The name.

        Returns:
            The factor, at least 1; None if it is not known, or if there are too few steps.
        """
        took, spent = sum(self.seconds.get(name, ())), sum(self.spent.get(name, ()))
        return took / (took - spent) if 0 < spent < took and len(self.spent[name]) >= _FEWEST else None

    def work(self, name: str, *, steady: bool) -> float:
        """The time of steps of a name, relative to plain steps.

        Args:
            name: The name.
            steady: Whether the clock is steady; else the machine may have become faster or slower since the plain steps.

        Returns:
            The factor, at least 1: that of :meth:`longer`. By a steady clock, a comparison with plain steps may give a smaller
            excess over 1, which counts instead, but at least half of the first. If :meth:`longer` is not known, plain steps
            alone count; 1 if there are none.
        """
        longer, took, plain = self.longer(name), self.typical(name), self.typical("plain")
        if not (took and plain and (steady or longer is None)):
            return longer or 1.0
        compared = max(1.0, took / plain)
        return compared if longer is None else min(max(compared, (1 + longer) / 2), longer)

    def steady(self, name: str) -> bool:
        """Whether the earlier and the later half of the times of a name have about the same lower quartile."""
        times = list(self.seconds.get(name, ()))
        if len(times) < _FEWEST:
            return False
        half = len(times) // 2
        return abs(_quartile(times[:half]) - _quartile(times[half:])) <= _SPREAD * _quartile(times)

    def state_dict(self) -> dict[str, dict[str, list[float]]]:
        """The times so far, as plain numbers."""
        parts = {"seconds": self.seconds, "spent": self.spent}
        return {part: {name: list(values) for name, values in kept.items()} for part, kept in parts.items()}


# Of each name, how many times are kept, and how few tell something.
_TIMES, _FEWEST = 64, 8

# By what share of the lower quartile the lower quartiles of both halves differ at most, by a steady clock.
_SPREAD = 0.25


def _quartile(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=4, method="inclusive")[0]


class Stopwatch:
    """Adds up the time of pieces of work."""

    def __init__(self) -> None:
        self._seconds = self._began = 0.0
        self._pending: deque[tuple[Any, Any]] = deque()

    def running(self, device: torch.device) -> AbstractContextManager[None]:
        """Add the time of the work in the context.

        Args:
            device: The device that does the work.

        Returns:
            The context.
        """
        return self._running_on_gpu() if device.type == "cuda" else self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._seconds += time.perf_counter() - self._began

    @contextmanager
    def _running_on_gpu(self) -> Iterator[None]:
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
