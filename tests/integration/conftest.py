import multiprocessing
import time

import pytest

from tests.support import scripts
from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the work that a module reports moves: what is decided by a real one depends on the machine."""
    monkeypatch.setattr(time, "perf_counter", Clock())
    return time.perf_counter


@pytest.fixture
def _spawned_with_imports(monkeypatch):
    """Lets spawned processes come from a server that has imported Lightning, which would take each of them seconds.

    All that they get is pickled, and unpickled where no test has run, as in a new interpreter.
    """
    contexts = {"spawn": scripts.context}
    original = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: contexts.get(method) or original(method))
