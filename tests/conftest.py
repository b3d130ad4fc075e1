"""What keeps the suite fast on any machine, as what is done around tiny problems counts, and its tests apart."""

import functools
import gc
import logging
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


LOGGERS = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero", "transformers")


@pytest.fixture(autouse=True)
def loggers_as_loud_as_before():
    """Benchmarks silence Lightning's loggers when they run; a later test in this process may wait for a message."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not a keyword, which the name of a folder is too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish():
    # What is imported and collected stays; Lightning's tuners, which collect garbage in each trial, need not look at it.
    gc.collect()
    gc.freeze()
