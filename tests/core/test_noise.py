"""What is said of gradient noise, against the covariance that synthetic gradients were made with."""

import pytest
import torch

from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections, ProbeDirections
from lightning_vamo.core.noise import GradientMoments, Noise, nested, noise_along, noise_of, ratio, removed
from tests.support.points import irregular, similar
from tests.support.problems import seeded

SHAPES = [(4, 3), (5,), (2, 2, 2)]
DIMENSION = 25
SCALES = torch.cat((torch.tensor([3.0, 2.0, 1.0]), torch.full((DIMENSION - 3,), 0.2))).double()


def axes():
    """Orthonormal rows, the principal directions of the noise."""
    return torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=seeded(0), dtype=torch.float64))[0].T


def mean():
    return 0.5 * torch.randn(DIMENSION, generator=seeded(1), dtype=torch.float64)


def flat_gradients(number, seed):
    noise = torch.randn(number, DIMENSION, generator=seeded(seed), dtype=torch.float64) * SCALES
    return mean() + noise @ axes()


def parts(row):
    sizes = [torch.Size(shape).numel() for shape in SHAPES]
    return [part.view(shape) for part, shape in zip(row.split(sizes), SHAPES, strict=True)]


def moments_of(rows, dtype=torch.float64):
    moments = GradientMoments([torch.zeros(shape, dtype=dtype) for shape in SHAPES])
    for row in rows:
        moments.observe([part.to(dtype) for part in parts(row)])
    return moments


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_streamed_moments_are_the_samples(dtype, tolerance):
    rows = flat_gradients(40, seed=2)
    moments = moments_of(rows, dtype)
    average = torch.cat([part.double().reshape(-1) for part in moments.mean])
    torch.testing.assert_close(average, rows.mean(0), rtol=0, atol=10 * tolerance)
    centred = (rows - rows.mean(0)).square().sum()
    assert float(moments.squares.sum()) == pytest.approx(float(centred), rel=tolerance)
    assert moments.squares.shape == (39,)


def test_products_are_those_of_weights_in_any_layout():
    points = irregular(torch.float64)
    moments = GradientMoments(points)
    moments.observe(points)
    others = similar(points, seed=3)
    expected = sum(float((one * other).sum()) for one, other in zip(points, others, strict=True))
    assert float(moments.product(others)) == pytest.approx(expected)


def test_a_missing_gradient_is_zero():
    shapes = [torch.zeros(2), torch.zeros(1)]
    moments = GradientMoments(shapes)
    moments.observe([torch.tensor([1.0, 2.0]), None])
    moments.observe([None, torch.tensor([4.0])])
    assert [part.tolist() for part in moments.mean] == [[0.5, 1.0], [2.0]]
    assert float(moments.squares.sum()) == pytest.approx((1 + 4 + 16) / 2)


def test_coordinates_of_the_noise_keep_its_scatter():
    rows = flat_gradients(30, seed=3)
    noise, centred = noise_along(rows), rows - rows.mean(0)
    torch.testing.assert_close(noise.T @ noise, centred.T @ centred)
    torch.testing.assert_close(noise.square().sum(1), moments_of(rows).squares)


@pytest.mark.parametrize("signal", [0.0, 1.0, 10.0])
def test_the_noise_scale_is_unbiased_and_its_error_about_right(signal):
    truth = float(SCALES.square().sum()), float(signal * mean().square().sum())
    shift = (signal**0.5 - 1) * mean()
    found = [halves(flat_gradients(48, seed) + shift) for seed in SEEDS]
    variances, signals = (torch.tensor([getattr(one, name) for one in found]) for name in ("variance", "signal"))
    for values, expected in zip((variances, signals), truth, strict=True):
        assert abs(float(values.mean()) - expected) < 3 * float(values.std()) / len(SEEDS) ** 0.5
    errors = torch.tensor([one.signal_error for one in found])
    assert 0.85 * float(signals.std()) < float(errors.square().mean().sqrt()) < 2**0.5 * 1.15 * float(signals.std())


def halves(rows):
    others, moments = moments_of(rows[::2]), moments_of(rows[1::2])
    products = torch.stack([others.product(parts(row)) for row in rows[1::2]])
    return noise_of(torch.cat((others.squares, moments.squares)), products)


SEEDS = range(1, 101)


def test_a_signal_that_drowns_gives_a_bound():
    drowned = Noise(variance=10.0, signal=-0.1, signal_error=0.5)
    assert not drowned.is_known
    assert drowned.to_signal == 10.0
    assert Noise(variance=10.0, signal=5.0, signal_error=0.5).to_signal == 2.0
    assert Noise(variance=0.0, signal=0.0, signal_error=0.0).to_signal == 0.0


class Skew(ProbeDirections):
    """Directions that are far from orthogonal, as rows."""

    def __init__(self, rows):
        self.rows = rows
        self.count, self.dimension = rows.shape
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        self.whitening = vectors @ torch.diag(values.rsqrt()) @ vectors.T

    def whiten(self, slopes):
        return slopes @ self.whitening

    def coordinates(self, rows):
        return self.whiten(rows @ self.rows.T)

    def move(self, targets, origins, index, distance):
        raise NotImplementedError

    project = remove_ = move


def test_shares_of_the_first_directions_are_those_of_their_span():
    rows = flat_gradients(60, seed=4)
    directions = Skew(torch.randn(4, DIMENSION, generator=seeded(5), dtype=torch.float64))
    coordinates = directions.coordinates(rows) @ nested(directions)
    held, _ = ratio(removed(coordinates, coordinates), moments_of(rows).squares)
    centred = rows - rows.mean(0)
    for count in range(1, 5):
        basis = torch.linalg.qr(directions.rows[:count].T)[0]
        expected = (centred @ basis).square().sum() / centred.square().sum()
        assert float(held[count - 1]) == pytest.approx(float(expected), rel=1e-9)


def test_orthonormal_families_are_nested_as_they_are():
    drawn = OrthonormalDirections().draw([torch.zeros(7)], 3, seeded(0))
    torch.testing.assert_close(nested(drawn), torch.eye(3, dtype=torch.float64))


def test_factored_directions_are_turned_and_not_stretched():
    parameters = [torch.zeros(4, 3), torch.zeros(5)]
    learner = GradientSubspaceDirections().learner(parameters, 3, seeded(0))
    generator = seeded(1)
    for _ in range(12):
        learner.observe([torch.randn(parameter.shape, generator=generator) for parameter in parameters])
    directions = learner.directions(3, seeded(2))
    turn = nested(directions)
    torch.testing.assert_close(turn @ turn.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    vector = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
    slope = directions.dense(parameters)[0] @ torch.cat([part.reshape(-1) for part in vector])
    assert float((directions.project(vector).double() @ turn)[0]) == pytest.approx(float(slope), rel=1e-5)


def test_shares_are_those_of_the_covariance_and_errors_cover_them():
    principal = axes()[:3]
    expected = SCALES.square()[:3].cumsum(0) / SCALES.square().sum()
    covered = torch.zeros(3)
    shares = []
    for seed in SEEDS:
        rows = flat_gradients(32, seed)
        coordinates = rows @ principal.T
        share, error = ratio(removed(coordinates, coordinates), moments_of(rows).squares)
        shares.append(share)
        covered += ((share - expected).abs() < 2 * error) / len(SEEDS)
    average = torch.stack(shares).mean(0)
    # A ratio of two unbiased sums is biased in the second order: by less than two parts in a hundred of 31 samples here.
    torch.testing.assert_close(average, expected, rtol=0, atol=0.02)
    assert float(covered.min()) > 0.8


def test_rows_that_miss_remove_less_and_noisy_rows_add():
    rows = flat_gradients(200, seed=6)
    coordinates, whole = rows @ axes()[:2].T, moments_of(rows).squares
    full, _ = ratio(removed(coordinates, coordinates), whole)
    half, _ = ratio(removed(coordinates, 0.5 * coordinates), whole)
    torch.testing.assert_close(half, 0.75 * full)
    shifted, _ = ratio(removed(coordinates, coordinates + 7.0), whole)
    torch.testing.assert_close(shifted, full)
    nothing, _ = ratio(removed(coordinates, torch.zeros_like(coordinates)), whole)
    assert not nothing.any()
    noisy = torch.randn(coordinates.shape, generator=seeded(7), dtype=torch.float64)
    worse, _ = ratio(removed(coordinates, 5 * noisy), whole)
    assert float(worse.max()) < 0
