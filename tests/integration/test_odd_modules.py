"""Modules with odd state train with VAMO as without, and their loss is the same number at the same point."""

import functools
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOMixin
from lightning_vamo.core.directions import SphereDirections
from tests.support.modules import MemoryLogger, trainer
from tests.support.odd import FEATURES, KINDS
from tests.support.watched import Watched, WatchedSweeps

NO_RADIUS = 1e-30
"""A radius at which the perturbed point is the point itself."""


def loader():
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(torch.randn(12, FEATURES, generator=generator), torch.arange(12) % 2)
    return DataLoader(data, batch_size=6, shuffle=True)


def trained(cls, callbacks):
    """Everything that a run of two epochs comes to."""
    L.seed_everything(7, verbose=False)
    # A class of this run's own, for some keep their state there.
    module, logger = type(cls.__name__, (VAMOMixin, cls) if callbacks else (cls,), {})(), MemoryLogger()
    fit = trainer(callbacks=callbacks, logger=logger)
    fit.fit(module, loader())
    drawn = float(torch.rand(())), float(np.random.rand()), random.random()
    return [p.tolist() for p in module.net.parameters()], logger.rows, drawn, module.state(), list(vars(module))


@functools.cache
def plain(name):
    return trained(KINDS[name], [])


class Both(Watched, WatchedSweeps):
    """Keeps sweeps and rows."""


@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_it_trains_as_without_vamo_and_the_loss_is_a_function_of_the_parameters(name, control):
    callback = Both(probes=2, directions=SphereDirections(), alpha=0.0, mu=NO_RADIUS, control=control, seed=1)
    assert trained(KINDS[name], [callback]) == plain(name)
    assert [sweep.deltas.any().item() for sweep in callback.sweeps] == [False, False]
    assert [row.any().item() for row in callback.rows] == [False] * (4 if control == "recompute" else 0)
