"""Through Lightning, VAMO along a full set of orthonormal directions is first-order SVRG; along fewer it is what it says."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import Replay, VAMOCallback
from lightning_vamo.core.directions import CoordinateDirections, OrthonormalDirections
from tests.reference import fo_svrg, sgd
from tests.support.least_squares import VAMOLeastSquares, problem, train
from tests.support.modules import trainer


@pytest.mark.parametrize("family", [OrthonormalDirections(), OrthonormalDirections("seeded"), CoordinateDirections()])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_directions_give_first_order_svrg(family, workers):
    callback = VAMOCallback(probes=9, directions=family, alpha="theory", difference="central", seed=0)
    points, start, plan = train(callback, num_workers=workers)
    expected = fo_svrg(*problem(), start, plan, 0.05)
    assert np.abs(points - expected).max() < 1e-5
    plain = sgd(*problem(), start, plan, 0.05)
    assert np.abs(points - plain).max() > 1e-2
    assert callback.report.variance_removed > 0.2


def test_a_snapshot_kept_for_two_epochs_gives_svrg_with_that_snapshot():
    arguments = {"directions": OrthonormalDirections(), "alpha": "theory", "difference": "central", "seed": 0}
    callback = VAMOCallback(probes=9, control=Replay(every_n_epochs=2), **arguments)
    points, start, plan = train(callback, epochs=4)
    joined = [plan[0] + plan[1], plan[2] + plan[3]]
    expected = fo_svrg(*problem(), start, joined, 0.05)
    assert np.abs(points - expected).max() < 1e-5


def test_accumulated_steps_use_the_mean_of_their_rows():
    """Accumulating all batches of an epoch leaves nothing to correct, as the corrections of equal batches cancel."""
    a, b = problem(samples=42)
    data = TensorDataset(torch.tensor(a).float(), torch.tensor(b).float(), torch.arange(42))

    def run(probes):
        module = VAMOLeastSquares(9, 0.05)
        callback = VAMOCallback(probes=probes, directions=OrthonormalDirections(), alpha="theory", seed=0, mu=0.1)
        fit = trainer(callbacks=[callback], max_epochs=3, accumulate_grad_batches=7)
        fit.fit(module, DataLoader(data, batch_size=6))
        return torch.cat(list(module.weights)).detach()

    assert torch.allclose(run(4), run(0), atol=1e-5)


def test_fewer_directions_remove_their_share_of_the_noise():
    """Share q/d of the variance at the snapshot, so less than all of the distance to first-order SVRG."""
    removed = {}
    for probes in (1, 3, 6, 9):
        arguments = {"directions": OrthonormalDirections(), "alpha": "theory", "difference": "central", "seed": 0}
        callback = VAMOCallback(probes=probes, **arguments)
        train(callback, epochs=8)
        removed[probes] = callback.report.variance_removed
    assert 0 < removed[1] < removed[3] < removed[6] < removed[9]
