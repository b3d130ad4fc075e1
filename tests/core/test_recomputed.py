"""The control variate of rows that come with their steps."""

import numpy as np
import pytest
import torch

from lightning_vamo.core.control.running import RecomputedControlVariate
from tests.support.problems import seeded


def rows_of(count, directions, seed=0):
    """Probe differences with a mean that is far from zero."""
    return torch.randn(count, directions, generator=seeded(seed), dtype=torch.float64) + 100


def test_rows_are_centred_around_the_mean_that_is_given():
    mean = torch.tensor([1.0, 2.0])
    control = RecomputedControlVariate(0.5, mean)
    row = torch.tensor([3.0, 1.0])
    control.see([row])
    assert control.correction(row).tolist() == [1.0, -0.5]
    assert control.mean is mean


def test_a_running_mean_is_over_the_rows_so_far():
    control, rows = RecomputedControlVariate(1.0), rows_of(6, 3)
    for step in range(3):
        pair = list(rows[2 * step : 2 * step + 2])
        control.see(pair)
        mean = rows[: 2 * step + 2].numpy().mean(axis=0)
        for row in pair:
            assert control.correction(row).numpy() == pytest.approx(row.numpy() - mean, abs=1e-12)


def test_the_first_step_of_a_running_mean_has_no_correction():
    control = RecomputedControlVariate(1.0)
    row = rows_of(1, 4)[0].float()
    assert control.correction(row).tolist() == [0.0] * 4
    control.see([row])
    assert control.correction(row).tolist() == [0.0] * 4


def test_a_running_mean_shrinks_the_difference_from_the_rows_before_as_is_best():
    """Of all factors, (k - 1) / k leaves the least of the noise of the k-th row; and what is left has mean zero."""
    left = {factor: [] for factor in (0.6, 0.8, 1.0)}
    for seed in range(4000):
        rows = rows_of(5, 1, seed)
        control = RecomputedControlVariate(1.0)
        for row in rows:
            control.see([row])
        best = control.correction(rows[4])
        before = rows[4] - rows[:4].mean(dim=0)
        assert torch.allclose(best, 4 / 5 * before, atol=1e-12)
        for factor in left:
            left[factor].append(float(rows[4] - 100 - factor * before))
    variance = {factor: np.var(values) for factor, values in left.items()}
    assert min(variance, key=variance.get) == 0.8
    assert variance[0.8] == pytest.approx(1 / 5, rel=0.1)
    assert abs(np.mean(left[0.8])) < 4 * (1 / 5 / 4000) ** 0.5


def test_entries_that_are_not_finite_are_left_out():
    control = RecomputedControlVariate(1.0)
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([float("nan"), 4.0])
    control.see([good])
    assert control.unused == 0
    control.see([bad])
    assert control.unused == 1
    assert control.mean.tolist() == [1.0, 3.0]
    assert control.correction(bad).tolist() == [0.0, 1.0]
    known = RecomputedControlVariate(1.0, torch.tensor([0.0, 1.0]))
    assert known.correction(torch.tensor([float("inf"), 4.0])).tolist() == [0.0, 3.0]


@pytest.mark.parametrize("mean", [None, torch.tensor([1.0, 2.0])])
def test_one_that_goes_on_from_a_state(mean):
    first, rows = RecomputedControlVariate(0.7, mean), rows_of(4, 2).float()
    first.see(list(rows[:2]))
    second = RecomputedControlVariate.of(first.state_dict())
    for control in (first, second):
        control.see(list(rows[2:]))
    assert torch.equal(first.correction(rows[3]), second.correction(rows[3]))
    assert first.unused == second.unused == 0


def test_a_step_without_rows_changes_nothing():
    control = RecomputedControlVariate(1.0)
    control.see([])
    assert control.mean is None
