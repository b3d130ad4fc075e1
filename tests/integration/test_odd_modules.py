"""Modules with odd state train with VAMO as without, and their loss is the same number at the same point."""

import functools
import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import UnsupportedError, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections
from tests.support.modules import MemoryLogger, trainer
from tests.support.odd_modules import FEATURES, KINDS, UNREACHABLE
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


CONTROLS = pytest.mark.parametrize("control", ["replay", "recompute"])


@CONTROLS
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
@pytest.mark.filterwarnings("ignore:No loss changed along any probe direction")
def test_it_trains_as_without_vamo_and_the_loss_is_a_function_of_the_parameters(name, control):
    # The one learns its direction in a warm-up, which computes gradients.
    directions = {"replay": GradientSubspaceDirections(), "recompute": SphereDirections()}[control]
    callback = Both(probes=1, directions=directions, alpha=0.0, mu=NO_RADIUS, control=control, seed=1)
    assert trained(KINDS[name], [callback]) == plain(name)
    assert [sweep.deltas.any().item() for sweep in callback.sweeps] == [False, False]
    assert [row.any().item() for row in callback.rows] == [False] * (4 if control == "recompute" else 0)


@CONTROLS
@pytest.mark.parametrize("name", ["numpy Generator, for mixup", "AveragedModel", "closure", "trained weights that are scaled"])
def test_the_search_for_a_radius_leaves_no_trace_either(name, control):
    callback = Both(probes=2, directions=SphereDirections(), alpha=0.0, difference="central", control=control, seed=1)
    assert trained(KINDS[name], [callback]) == plain(name)
    assert all(sweep.deltas.any().item() for sweep in callback.sweeps)


@CONTROLS
@pytest.mark.parametrize("name", UNREACHABLE)
def test_what_cannot_be_put_back_is_refused_before_the_first_step(name, control):
    module = type(name, (VAMOMixin, UNREACHABLE[name]), {})()
    before = [parameter.tolist() for parameter in module.parameters()]
    fit = trainer(callbacks=[Both(probes=1, directions=SphereDirections(), control=control)])
    with pytest.raises(UnsupportedError, match=r"cannot be put back.*Define `probe_loss.*control='carry'.*probes=0"):
        fit.fit(module, loader())
    assert fit.global_step == 0
    assert [parameter.tolist() for parameter in module.parameters()] == before
