import pytest
import torch

from lightning_vamo.core.control.coefficients import LinearDecay, Regression
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import small
from tests.support.problems import seeded


def fed(coefficient, slopes, rows):
    for c, r in zip(slopes, rows, strict=True):
        coefficient.observe(Slopes.of(c), small(r))
    return coefficient.factors()


def noise(steps, count, seed):
    return torch.randn(steps, count, generator=seeded(seed), dtype=torch.float64)


def test_before_any_step_the_table_is_trusted():
    assert torch.equal(Regression(3).factors(), torch.ones(3).double())


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9, 1.0])
def test_the_coefficient_of_a_linear_relation_is_found(beta):
    """An offset of the slopes, which is the full gradient's, does not count."""
    rows = noise(2000, 4, 1)
    slopes = 5 + beta * rows + 0.1 * noise(2000, 4, 2)
    factors = fed(Regression(4), slopes, rows)
    assert (factors - beta).abs().max() < 0.05


def test_rows_without_information_come_to_count_for_nothing():
    factors = fed(Regression(50), noise(2000, 50, 1), noise(2000, 50, 2))
    # The standard deviation of an estimate from the last 100 steps is 0.07 (an exponential window counts for two); half of
    # them are clipped at zero.
    assert factors.mean() < 0.05
    assert factors.max() < 0.3
    opposite = noise(500, 3, 3)
    assert torch.equal(fed(Regression(3), -opposite, opposite), torch.zeros(3).double())


def test_slopes_that_are_larger_than_the_rows_do_not_count_for_more_than_one():
    rows = noise(500, 3, 1)
    assert torch.equal(fed(Regression(3), 1.5 * rows, rows), torch.ones(3).double())


def test_a_few_steps_change_little_and_many_all():
    rows = noise(1000, 20, 1)
    slopes = noise(1000, 20, 2)
    young = fed(Regression(20), slopes[:1], rows[:1])
    assert young.min() > 0.9
    assert fed(Regression(20), slopes[:30], rows[:30]).mean() < fed(Regression(20), slopes[:5], rows[:5]).mean()
    assert fed(Regression(20), slopes, rows).mean() < 0.1


def test_it_follows_a_change():
    rows = noise(1000, 4, 1)
    coefficient = Regression(4)
    assert fed(coefficient, rows[:500], rows[:500]).min() > 0.99
    assert fed(coefficient, noise(500, 4, 2), rows[500:]).max() < 0.4


def test_estimates_agree_with_a_direct_computation():
    slopes, rows = noise(40, 3, 1), noise(40, 3, 2)
    gamma, prior = 1 - 1 / 20, 5.0
    weights = gamma ** torch.arange(39, -1, -1).double()
    total = weights.sum()
    mean = {name: (weights[:, None] * x).sum(0) / total for name, x in (("c", slopes), ("r", rows))}
    covariance = (weights[:, None] * (slopes - mean["c"]) * (rows - mean["r"])).sum(0) / total
    variance = (weights[:, None] * (rows - mean["r"]) ** 2).sum(0) / total
    left = prior * gamma**40
    expected = ((total * covariance / variance + left) / (total + left)).clamp(0, 1)
    assert torch.allclose(fed(Regression(3, memory=20, prior=prior), slopes, rows), expected, rtol=1e-10)


def test_a_step_that_is_not_finite_is_left_out():
    slopes, rows = noise(30, 2, 1), noise(30, 2, 2)
    clean, soiled = Regression(2), Regression(2)
    fed(clean, slopes, rows)
    fed(soiled, slopes[:10], rows[:10])
    soiled.observe(Slopes.of(torch.tensor([float("inf"), 1.0])), small(rows[0]))
    fed(soiled, slopes[10:], rows[10:])
    assert torch.equal(clean.factors(), soiled.factors())


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_single_enormous_slope_does_not_decide(sign):
    rows = noise(200, 3, 1)
    slopes = 0.5 * rows + 0.1 * noise(200, 3, 2)
    usual = fed(Regression(3), slopes, rows)
    slopes[190] = sign * 1000.0 * rows[190].sign()
    assert (fed(Regression(3), slopes, rows) - usual).abs().max() < 0.05


def test_enormous_slopes_that_the_rows_tell_exactly_count_as_one():
    rows = noise(200, 3, 1)
    rows[::20] *= 100
    assert (fed(Regression(3), rows, rows) - 1).abs().max() < 1e-9


def test_slopes_that_are_zero_most_often_count_once_they_are_not():
    """As of a direction along an embedding's row that few batches touch."""
    rows = torch.zeros(200, 1).double()
    rows[30::40] = torch.tensor([[1.0], [-2.0], [1.5], [-1.0], [0.5]]).double()
    assert (fed(Regression(1), 0.5 * rows, rows) - 0.5).abs().max() < 0.1


def test_another_number_of_directions_keeps_what_is_known():
    coefficient = Regression(4)
    before = fed(coefficient, noise(200, 4, 1), noise(200, 4, 2))
    assert torch.equal(coefficient.resized(2).factors(), before[:2])
    more = coefficient.resized(6).factors()
    assert torch.equal(more[:4], before)
    assert torch.equal(more[4:], torch.ones(2).double())


def test_a_state_goes_on_to_the_bit():
    slopes, rows = noise(60, 3, 1), noise(60, 3, 2)
    whole, first = Regression(3), Regression(3)
    fed(whole, slopes, rows)
    fed(first, slopes[:25], rows[:25])
    second = Regression.of(first.state_dict())
    fed(second, slopes[25:], rows[25:])
    assert torch.equal(whole.factors(), second.factors())


def test_a_linear_decay_goes_from_one_to_zero():
    assert [LinearDecay().factors(k / 4) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_steps_of_a_checkpoint_follow_the_gradients_to_their_device():
    """As on a GPU; the device without numbers stands for one."""
    slopes, rows = noise(43, 3, 1), noise(43, 3, 2)
    first = Regression(3)
    fed(first, slopes, rows)
    second = Regression.of(first.state_dict())
    for _ in range(5):
        away = torch.empty(3, device="meta", dtype=torch.float64)
        second.observe(Slopes(away, torch.empty((), device="meta", dtype=torch.bool)), away)
    assert second.factors().device.type == "meta"
