import time

import pytest

from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the work that a module reports moves: what is decided by a real one depends on the machine."""
    monkeypatch.setattr(time, "perf_counter", Clock())
    return time.perf_counter
