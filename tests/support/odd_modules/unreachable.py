"""Modules whose loss depends on what cannot be put back: VAMO refuses them before the first step."""

import contextvars
import io
import itertools
import mmap
import queue
import random
import threading

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tests.support.odd_modules.base import Odd

UNREACHABLE = {}

COUNTER = itertools.count()
GENERATOR = np.random.default_rng(1)


def unreachable(name, make, change):
    """Enter a module that holds something, and changes it, into the table."""

    def prepare(self):
        self.held = make()

    members = {"prepare": prepare, "odd": lambda self, inputs: change(self.held)}
    UNREACHABLE[name] = type("Holds" + "".join(filter(str.isalnum, name.title())), (Odd,), members)


class Counting(Dataset):
    """Counts what is read from it."""

    calls = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.calls += 1
        return self.calls


class Owner:
    """Owns a thread, so that nobody else may turn the object's clock back."""

    def __init__(self):
        self.thread, self.calls = threading.Thread(target=print), 0


def step_attribute(held):
    held.calls = getattr(held, "calls", 0) + 1
    return held.calls


def step_item(held):
    held[0] += 1
    return float(held[0])


def step_variable(held):
    held.set(held.get() + 1)
    return held.get()


def step_queue(held):
    held.put(None)
    return held.qsize()


unreachable("global counter", lambda: None, lambda held: next(COUNTER))
unreachable("global generator", lambda: None, lambda held: GENERATOR.normal())
unreachable("random numbers of the operating system", random.SystemRandom, lambda held: 100 * held.random())
unreachable("Python generator", lambda: (item for item in range(1000)), next)
unreachable("iterator of a DataLoader", lambda: iter(DataLoader(torch.arange(100.0))), lambda held: float(next(held)))
unreachable("file", lambda: io.StringIO("0123456789" * 100), lambda held: int(held.read(1)))
unreachable("mapped memory", lambda: mmap.mmap(-1, 4), step_item)
unreachable("queue", queue.Queue, step_queue)
unreachable("variable of the thread", threading.local, step_attribute)
unreachable("variable of the context", lambda: contextvars.ContextVar("calls", default=0), step_variable)
unreachable("object with a thread", Owner, step_attribute)
unreachable("dataset", Counting, lambda held: held[0])
unreachable("list in a long list", lambda: [[0] for _ in range(2000)], lambda held: step_item(held[5]))
