"""On a GPU, everything works with ``Trainer(deterministic=True)``, and gives the numbers of a CPU."""

import pytest
import torch

from lightning_vamo.core.control.bounds import bounded
from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.directions import GaussianDirections, GradientSubspaceDirections, MaskedDirections
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import small
from tests.support.points import noise
from tests.support.pretend_gpu import numbers, pretended_gpu
from tests.support.problems import seeded


@pytest.fixture(autouse=True)
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def check_same(work, monkeypatch):
    """Compare what some work gives on the CPU with what it gives on the pretended GPU."""
    with torch.no_grad():
        expected = work(lambda tensor: tensor.clone())
        with pretended_gpu(monkeypatch) as gpu:
            found = numbers(work(gpu.put))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_rows_are_bounded(monkeypatch):
    [rows] = noise([(9, 3)])
    rows[2, 1] = 1e6
    rows[:7, 2] = 0.5
    used = torch.tensor([True] * 6 + [False] * 2 + [True])
    check_same(lambda put: [bounded(put(rows), put(used))], monkeypatch)
    check_same(lambda put: [bounded(put(rows), put(used & False))], monkeypatch)


@pytest.mark.parametrize("rank", [1, None])
def test_directions_are_learned(rank, monkeypatch):
    gradients = [noise([(6, 5), (4,)], seed=seed) for seed in range(8)]

    def work(put):
        learner = GradientSubspaceDirections(rank).learner([put(part) for part in gradients[0]], 2, seeded(0))
        for gradient in gradients * 2:
            learner.observe([put(part) for part in gradient])
            learner.directions(2, seeded(1))
        return [learner.shares]

    check_same(work, monkeypatch)


def test_a_regression_is_measured(monkeypatch):
    [slopes, rows] = noise([(40, 3), (40, 3)])

    def work(put):
        regression = Regression(3)
        for one, row in zip(slopes, rows, strict=True):
            regression.observe(Slopes.of(put(one)), small(put(one + row)))
        return [torch.as_tensor(regression.factors(0.5))]

    check_same(work, monkeypatch)


@pytest.mark.parametrize("keep", [0.01, 0.5, 1.0])
def test_small_weights_are_found(keep, monkeypatch):
    points = noise([(7, 3), (1,), (5,)])

    def work(put):
        family = MaskedDirections(GaussianDirections("seeded"), keep).at([put(point) for point in points])
        return family.state()

    check_same(work, monkeypatch)
