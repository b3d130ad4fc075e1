"""What keeps the suite fast on any machine: the problems are tiny, so what is done around them counts."""

import functools
import gc
import os

# One thread per process, and per process that a test starts: threads that wait for each other cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.fabric.utilities.registry as registry
import pytest
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

torch.set_num_threads(1)

# Every Trainer reads the metadata of all the packages that are installed, for callbacks; they stay the same.
registry.entry_points = functools.cache(registry.entry_points)


def _moved(figure, device, *, move=_ResultMetric.to):
    return figure if torch.device(device).type == "cpu" else move(figure, device)


# Each figure that is logged is moved to the device where it is, which takes as long as a forward pass. It is made on the CPU.
_ResultMetric.to = _moved


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword, which the name of a folder is too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    # What is imported and collected stays; Lightning's tuners, which collect garbage in each trial, need not look at it.
    gc.collect()
    gc.freeze()
