"""Bounded rows: outliers are moved to the bound, light tails are left alone, and corrections still cancel."""

import numpy as np
import pytest
import torch

from lightning_vamo.core.control.bounds import bounded
from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.problems import seeded


def normal(rows, count=3, seed=0):
    return torch.randn(rows, count, generator=seeded(seed), dtype=torch.float64)


def test_an_outlier_is_moved_to_the_bound_and_nothing_else_changes():
    rows = normal(400)
    rows[7, 1], rows[9, 2] = 500.0, -40.0
    within = bounded(rows, torch.ones(400) > 0)
    for column, place in ((1, 7), (2, 9)):
        values = np.sort(rows[:, column].numpy())
        median = values[199]  # the lower of the two in the middle
        spread = 1.4826 * np.sort(np.abs(values - median))[199]
        expected = median + np.sign(rows[place, column].item()) * 4 * (1 + (16 / 400) ** 2) * spread
        assert within[place, column].item() == pytest.approx(expected, rel=1e-12)
    changed = (within != rows).nonzero().tolist()
    assert changed == [[7, 1], [9, 2]]


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 12, 40, 400, 4000])
def test_light_tails_are_left_alone(rows):
    """Of uniform numbers none is moved; of normal ones hardly any, however few there are."""
    used = torch.ones(rows) > 0
    uniform = torch.rand(rows, 50, generator=seeded(rows), dtype=torch.float64)
    assert rows < 12 or torch.equal(bounded(uniform, used), uniform)
    table = normal(rows, 50, seed=rows)
    lost = 1 - float(bounded(table, used).square().sum() / table.square().sum())
    assert lost < 0.01


def test_rows_that_do_not_count_have_no_part_in_the_bounds():
    rows, used = normal(60), torch.arange(60) < 40
    rows[40:] = torch.nan
    few, many = bounded(rows, used)[:40], bounded(rows[:40], torch.ones(40) > 0)
    assert torch.equal(few, many)


def test_a_column_that_few_batches_touch_is_kept():
    rows = torch.zeros(100, 2, dtype=torch.float64)
    rows[::10, 0] = normal(10, 1)[:, 0]
    assert torch.equal(bounded(rows, torch.ones(100) > 0), rows)
    rows[3, 0] = 1e6
    assert float(bounded(rows, torch.ones(100) > 0)[3, 0]) < 20


def test_nothing_to_bound():
    assert bounded(torch.empty(0, 3), torch.empty(0) > 0).shape == (0, 3)
    unknown = torch.full((4, 2), torch.nan)
    assert bounded(unknown, torch.zeros(4) > 0).isnan().all()


@pytest.mark.parametrize("weights", [torch.ones(30), torch.arange(30.0)])
def test_corrections_of_bounded_rows_cancel(weights):
    deltas = normal(30)
    deltas[4] *= 1e4
    swept = ControlVariate(bounded(deltas, weights > 0), weights, 1.0)
    carried = CarriedRows(weights, 3, deltas=deltas, bounds=True)
    for control in (swept, carried):
        rows = torch.stack([control.correction(key) for key in range(30)])
        assert (weights.double() @ rows).abs().max() < 1e-9
        assert rows.abs().max() < 20


def train(bounds, seed=3, outliers=6, epochs=4):
    """Carried rows on a table with some impossible samples, by steps that do not depend on a gradient's size.

    Returns:
        The shares of the second moment that each epoch's corrections removed, of the usual steps and of all.
    """
    generator, count, size = seeded(seed), 80, 8
    inputs = torch.randn(count * size, 4, generator=generator, dtype=torch.float64)
    inputs[torch.randperm(len(inputs), generator=generator)[:outliers], 2] = 60.0
    targets = inputs @ torch.tensor([1.0, -2.0, 0.02, 0.5]).double() + torch.randn(
        len(inputs), generator=generator, dtype=torch.float64
    )
    usual = (inputs.abs() < 60).all(dim=1).reshape(count, size).all(dim=1)
    weight = torch.zeros(4, dtype=torch.float64)
    directions = OrthonormalDirections().draw([weight], 3, generator)
    table = CarriedRows(torch.full((count,), float(size)), 3, bounds=bounds)
    correction = Correction([weight], directions, table, coefficient=Regression(3))
    optimizer, shares = torch.optim.Adam([weight], 0.02), []
    for _ in range(epochs):
        total = torch.zeros(2, 2, dtype=torch.float64)
        table.begin_epoch()
        for key in torch.randperm(count, generator=generator).tolist():
            part = slice(key * size, key * size + size)
            weight.grad = 2 / size * (inputs[part] @ weight - targets[part]) @ inputs[part]
            moments = correction.apply([key])
            if moments is not None:
                total += torch.outer(torch.stack([usual[key], usual[key] | True]).double(), moments)
            optimizer.step()
        shares.append((total[:, 1] / total[:, 0]).tolist())
    return np.array(shares[1:])


def test_bounded_rows_do_no_harm_where_gradients_have_heavy_tails():
    """The few enormous gradients meet rows that have nothing to do with them: their shares are of either sign, and large."""
    usual, every = np.stack([train(bounds=True, seed=seed) for seed in range(5)]).transpose(2, 0, 1)
    assert usual.min() > -0.01
    assert usual.mean() > 0.33  # 0.28 if the regression counts each step alike
    assert every.mean() > -0.01
    assert min(train(bounds=False, seed=seed)[:, 1].min() for seed in range(5)) < -0.1


def test_bounds_lose_nothing_without_outliers():
    without = train(bounds=True, outliers=0)
    assert np.allclose(without, train(bounds=False, outliers=0), rtol=0, atol=0.01)
    assert without.min() > 0.1


@pytest.mark.parametrize("bounds", [False, True])
def test_rows_from_before_the_loss_fell_earn_no_trust(bounds):
    """The table of an epoch in which gradients fell by five orders of magnitude says nothing of the next one's."""
    generator = seeded(4)
    sizes = torch.logspace(0, -5, 200, dtype=torch.float64)
    rows = torch.randn(200, 2, generator=generator, dtype=torch.float64) * sizes.unsqueeze(1)
    weight = torch.zeros(2, dtype=torch.float64)
    directions = OrthonormalDirections().draw([weight], 2, generator)
    table = CarriedRows(torch.ones(200), 2, deltas=rows, bounds=bounds)
    table.begin_epoch()
    correction, total = Correction([weight], directions, table, coefficient=Regression(2)), torch.zeros(2).double()
    for key in torch.randperm(200, generator=generator).tolist():
        weight.grad = 1e-5 * torch.randn(2, generator=generator, dtype=torch.float64)
        total += correction.apply([key])
    # All of the harm is in the few steps that find out.
    assert float(-total[1] / total[0]) < (0.01 if bounds else 1e4)
