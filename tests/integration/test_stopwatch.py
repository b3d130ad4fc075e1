"""Time on a GPU is read off its events, without waiting for it in between."""

import time
from unittest.mock import patch

import torch

from lightning_vamo.loop.ledger.clocks import Stopwatch


class Event:
    """Stands in for an event of a GPU that does everything one second late."""

    now, done = 0.0, 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def query(self):
        return self.at <= Event.done

    def synchronize(self):
        Event.done = max(Event.done, self.at)

    def elapsed_time(self, end):
        assert end.at <= Event.done, "not done"
        return 1000 * (end.at - self.at)


def test_work_on_a_gpu_is_counted_when_it_is_done():
    watch, device = Stopwatch(), torch.device("cuda")
    with patch("torch.cuda.Event", Event):
        for _ in range(5):
            with watch.running(device):
                Event.now += 2
            Event.done = Event.now - 1
            assert len(watch._pending) <= 2  # what is done is not kept
        assert watch.read() == 10
        assert watch.read() == 10


def test_work_on_a_cpu():
    watch, start = Stopwatch(), time.perf_counter()
    for _ in range(2):
        with watch.running(torch.device("cpu")):
            time.sleep(0.01)
    assert 0.02 <= watch.read() <= time.perf_counter() - start
    assert watch.read() == watch.read()  # it stands still meanwhile
