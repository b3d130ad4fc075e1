"""The search for the smoothing radius: rounding on one side, curvature on the other."""

import math

import pytest

from lightning_vamo.core.probes.radius import FACTOR, GOOD_SNR, LADDER, best_radius, followed, trend_of


def errors(rounding, curvature, slope=1.0):
    """What a finite difference of a smooth loss, rounded, has for an error."""

    def at(mu):
        error = rounding / mu + curvature * mu
        return error, error / slope

    return at


def each(at):
    """The errors at several radii."""
    return lambda radii: [at(mu) for mu in radii]


@pytest.mark.parametrize("start", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("rounding", "curvature"), [(1e-7, 10.0), (1e-9, 1e-2), (1e-6, 1.0)])
def test_the_best_of_the_ladder_is_found(rounding, curvature, start):
    ladder = [start * FACTOR**step for step in LADDER]
    found = best_radius(each(errors(rounding, curvature)), start)
    least = math.sqrt(rounding / curvature)  # where the two are equal
    nearest = min(ladder, key=lambda mu: rounding / mu + curvature * mu)
    assert found == nearest
    if min(ladder) <= least <= max(ladder):
        assert 1 / FACTOR <= found / least <= FACTOR


def test_far_out_a_loss_that_is_nearly_linear_does_not_mislead():
    """There differences are large, with an error that is small for their size, but they are not slopes at the point."""

    def at(mu):
        return (3.0, 0.3) if mu > 1 else errors(1e-6, 1.0)(mu)

    assert best_radius(each(at), 1.0) <= 1


def test_errors_that_are_not_known_do_not_count():
    def at(mu):
        return (math.nan, math.nan) if mu > 1e-2 else errors(1e-6, 1.0)(mu)

    assert best_radius(each(at), 0.1) <= 1e-2


def test_where_all_is_error_the_least_share_is_taken():
    def at(mu):
        return 1 / mu, 2 + 1 / mu

    assert best_radius(each(at), 1.0) == FACTOR ** max(LADDER)


@pytest.mark.parametrize(
    ("up", "down", "trend"),
    [(1.0, 2.0, "rounding"), (1.0, 0.5, "curvature"), (1.0, 1.0, None), (0.0, 0.0, None), (math.nan, 1.0, None)],
)
def test_rounding_and_curvature_change_with_the_radius_in_opposite_ways(up, down, trend):
    assert trend_of(up, down) == trend


@pytest.mark.parametrize(
    ("snr", "trend", "factor"),
    [(3.0, "rounding", 2.0), (3.0, "curvature", 0.5), (3.0, None, 1.0), (None, "rounding", 1.0), (GOOD_SNR, "rounding", 1.0)],
)
def test_later_radii_follow_a_factor_at_a_time(snr, trend, factor):
    assert followed(0.01, snr, trend) == 0.01 * factor
