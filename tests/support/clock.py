"""A clock that stands still until a test moves it, for what is decided by the time that things take."""

import time


class Clock:
    """Takes the place of ``time.perf_counter``; ``now`` is what it shows."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def takes(seconds):
    """Let some time pass, where the clock is one that stands still."""
    if isinstance(time.perf_counter, Clock):
        time.perf_counter.now += seconds
