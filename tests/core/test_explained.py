"""The share of slopes' variance that rows explain."""

import pytest
import torch

from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import small


def regression(share, steps, seed=0):
    """Slopes of which each direction's rows explain a share; the rows have another scale."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.tensor(share, dtype=torch.float64)
    found = Regression(len(share))
    for _ in range(steps):
        row, rest = torch.randn(2, len(share), generator=generator, dtype=torch.float64)
        found.observe(Slopes.of(5 + share.sqrt() * row + (1 - share).sqrt() * rest), small(3 * row))
    return found


def test_it_is_the_squared_correlation():
    share = [0.0, 0.3, 0.8, 1.0]
    found = torch.stack([regression(share, 300, seed).explained for seed in range(20)])
    torch.testing.assert_close(found.mean(0), torch.tensor(share, dtype=torch.float64), atol=0.04, rtol=0)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_few_steps_explain_nothing(steps):
    assert regression([1.0, 0.5], steps).explained.tolist() == [0.0, 0.0]


def test_rows_that_are_all_the_same_explain_nothing():
    found = Regression(1)
    for step in range(50):
        found.observe(Slopes.of(torch.tensor([float(step % 7)])), small(torch.zeros(1)))
    assert found.explained.tolist() == [0.0]
