import pytest
import torch

from lightning_vamo.core import ControlVariate
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import check_alpha, effective_coefficient
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    OrthonormalDirections,
    RademacherDirections,
    SphereDirections,
)
from lightning_vamo.errors import InvalidArgumentError
from tests import reference
from tests.support.problems import LeastSquares, LogisticRegression, batches_of, probe_table, seeded

SPHERE, ORTHONORMAL = SphereDirections(), OrthonormalDirections()


# The coefficient


@pytest.mark.parametrize(("count", "dimension"), [(1, 10), (4, 1000), (10, 10)])
def test_the_theorys_alpha_makes_the_coefficient_one(count, dimension):
    assert effective_coefficient("theory", count, dimension) == 1.0
    assert effective_coefficient(count / dimension, count, dimension) == pytest.approx(1.0, rel=1e-15)


def test_the_coefficient_is_alpha_times_d_over_q():
    assert effective_coefficient(0.5, 4, 100) == 12.5
    assert effective_coefficient(0.0, 4, 100) == 0.0


@pytest.mark.parametrize("alpha", ["theory", "adaptive", "linear-decay", 0, 0.0, 1, 0.25, 10.0])
def test_a_non_negative_number_and_theory_are_accepted(alpha):
    check_alpha(alpha)


@pytest.mark.parametrize("alpha", [-0.1, -1, float("nan"), float("inf"), True, None, "best", torch.tensor(0.5)])
def test_anything_else_is_refused(alpha):
    with pytest.raises(
        InvalidArgumentError, match=r"`alpha` must be one of 'theory', .*, or a finite number >= 0, got "
    ) as error:
        check_alpha(alpha)
    assert repr(alpha) in str(error.value)


# What it does to the variance, measured over the mini-batches at the snapshot and over many draws of the directions


SHAPES = {10: [(2, 3), (4,)], 20: [(3, 5), (), (4,)], 60: [(7, 8), (4,)]}


class Experiment:
    """The mini-batch gradients of a problem at a point, and how far from the full gradient a correction leaves them."""

    def __init__(self, problem, family, count, draws, batches=4, size=5):
        self.problem, self.family, self.count, self.draws = problem, family, count, draws
        self.probed = False
        self.dimension = problem.dimension
        self.parameters = problem.start()
        self.batches = batches_of(batches * size, size, seed=0)
        oracle = {LeastSquares: reference.least_squares_gradient, LogisticRegression: reference.logistic_gradient}[
            type(problem)
        ]
        a, b, x = problem.a.numpy(), problem.b.numpy(), reference.flatten(self.parameters)
        self.gradients = [torch.from_numpy(oracle(a[batch], b[batch], x)) for batch in self.batches]
        self.full = torch.from_numpy(oracle(a, b, x))
        self.variance = float(sum((gradient - self.full).square().sum() for gradient in self.gradients)) / batches
        self.sizes = [shape.numel() for shape in problem.shapes]

    def table(self, directions):
        # On a quadratic central differences are exact; elsewhere their error is of the order of the step squared.
        quadratic = isinstance(self.problem, LeastSquares)
        exact = torch.stack(self.gradients) @ directions.dense(self.parameters).T if quadratic else None
        if not quadratic or not self.probed:  # once is enough where it is known what comes of it
            mu = 0.5 if quadratic else 1e-4
            table = probe_table(self.problem, self.parameters, self.batches, directions, mu, "central")
            assert not quadratic or torch.allclose(table, exact, rtol=1e-9, atol=1e-9)
            self.probed = True
            return table
        return exact

    def ratio(self, correct):
        """Mean and standard error, over draws, of the variance relative to SGD's. `correct` changes `.grad` for each row."""
        generator, ratios = seeded(7), []
        for _ in range(self.draws):
            correct_row = correct(self, generator)
            total = torch.zeros(())
            for row, gradient in enumerate(self.gradients):
                for parameter, part in zip(self.parameters, gradient.split(self.sizes), strict=True):
                    parameter.grad = part.clone().view(parameter.shape)
                correct_row(row)
                total = total + (torch.cat([p.grad.reshape(-1) for p in self.parameters]) - self.full).square().sum()
            ratios.append(float(total) / len(self.gradients) / self.variance)
        samples = torch.tensor(ratios, dtype=torch.float64)
        return float(samples.mean()), float(samples.std()) / self.draws**0.5


def vamo(alpha):
    """Correct with shared directions: VAMO."""

    def correct(experiment, generator):
        directions = experiment.family.draw(experiment.parameters, experiment.count, generator)
        beta = effective_coefficient(alpha, experiment.count, experiment.dimension)
        control = ControlVariate(experiment.table(directions), torch.ones(len(experiment.batches)), beta)
        correction = Correction(experiment.parameters, directions, control)
        return lambda row: correction.apply([row])

    return correct


def assert_within_sampling_error(measured, expected, most=0.02):
    mean, error = measured
    assert error < most
    assert mean == pytest.approx(expected, abs=4 * error + 1e-12)


@pytest.mark.parametrize(("d", "q"), [(10, 1), (20, 15), (60, 6)])
@pytest.mark.parametrize("family", [ORTHONORMAL, CoordinateDirections()], ids=lambda family: type(family).__name__)
def test_orthonormal_directions_leave_the_share_one_minus_q_over_d_of_the_variance(family, d, q):
    experiment = Experiment(LeastSquares(20, SHAPES[d]), family, q, draws=150 if d < 60 else 60)
    assert_within_sampling_error(experiment.ratio(vamo("theory")), 1 - q / d)


@pytest.mark.parametrize(("d", "q"), [(10, 1), (20, 5), (10, 20)])
@pytest.mark.parametrize("family", [SPHERE, RademacherDirections()], ids=lambda family: type(family).__name__)
def test_independent_directions_with_the_best_alpha_leave_one_minus_q_over_d_plus_q_minus_one(family, d, q):
    experiment = Experiment(LeastSquares(20, SHAPES[d]), family, q, draws=150 if d < 60 else 60)
    assert_within_sampling_error(experiment.ratio(vamo(q / (d + q - 1))), 1 - q / (d + q - 1))


@pytest.mark.parametrize(("d", "q"), [(10, 5), (20, 5)])
def test_gaussian_directions_do_a_little_worse_as_their_lengths_vary(d, q):
    experiment = Experiment(LeastSquares(20, SHAPES[d]), GaussianDirections(), q, draws=150)
    assert_within_sampling_error(experiment.ratio(vamo(q / (d + q + 1))), 1 - q / (d + q + 1))


@pytest.mark.parametrize(("family", "alpha", "expected"), [(ORTHONORMAL, 5 / 20, 1 - 5 / 20), (SPHERE, 5 / 24, 1 - 5 / 24)])
def test_the_shares_are_the_same_for_a_loss_that_is_not_quadratic(family, alpha, expected):
    experiment = Experiment(LogisticRegression(20, SHAPES[20]), family, 5, draws=150)
    assert_within_sampling_error(experiment.ratio(vamo(alpha)), expected)


@pytest.mark.parametrize("family", [ORTHONORMAL, CoordinateDirections()], ids=lambda family: type(family).__name__)
def test_as_many_orthonormal_directions_as_parameters_leave_no_variance(family):
    experiment = Experiment(LeastSquares(20, SHAPES[20]), family, 20, draws=3)
    assert experiment.ratio(vamo("theory"))[0] < 1e-20


def test_as_many_independent_directions_as_parameters_leave_half_of_it_at_best_and_all_of_it_with_the_theorys_alpha():
    d = 10
    experiment = Experiment(LeastSquares(20, SHAPES[d]), SPHERE, d, draws=150)
    assert_within_sampling_error(experiment.ratio(vamo(d / (2 * d - 1))), 1 - d / (2 * d - 1))
    assert_within_sampling_error(experiment.ratio(vamo("theory")), 1 - 1 / d, most=0.05)


@pytest.mark.parametrize("factor", [0.5, 1.5])
@pytest.mark.parametrize(("family", "best"), [(ORTHONORMAL, 5 / 10), (SPHERE, 5 / 14)], ids=["orthonormal", "sphere"])
def test_another_alpha_than_the_best_leaves_more(family, best, factor):
    experiment = Experiment(LeastSquares(20, SHAPES[10]), family, 5, draws=150)
    measured = experiment.ratio(vamo(factor * best))
    removed = best  # the best alpha is also the share that it removes
    assert_within_sampling_error(measured, 1 - removed * (1 - (factor - 1) ** 2), most=0.03)
    assert measured[0] > 1 - removed + 4 * measured[1]


# Without shared directions nothing is gained


def test_coefficients_along_fresh_directions_add_the_variance_that_they_should_have_removed():
    def correct(experiment, generator):
        measured_along = experiment.family.draw(experiment.parameters, experiment.count, generator)
        control = ControlVariate(experiment.table(measured_along), torch.ones(len(experiment.batches)), 1.0)
        fresh = experiment.family.draw(experiment.parameters, experiment.count, generator)
        correction = Correction(experiment.parameters, fresh, control)
        return lambda row: correction.apply([row])

    d, q = 10, 5
    experiment = Experiment(LeastSquares(20, SHAPES[d]), ORTHONORMAL, q, draws=300)
    measured = experiment.ratio(correct)
    assert_within_sampling_error(measured, 1 + q / d, most=0.03)
    assert measured[0] > 1 + 4 * measured[1]


def test_different_directions_for_the_two_estimates_reduce_nothing():
    # What is left is the noise off the first estimate's directions, and the mean gradient seen through the difference of
    # two projections, which outweighs what was removed as soon as half of the mean gradient does the noise.
    def correct(experiment, generator):
        own, other = (experiment.family.draw(experiment.parameters, experiment.count, generator) for _ in range(2))
        deltas, mean = experiment.table(own), experiment.table(other).mean(dim=0)

        def correct_row(row):
            gradients = [parameter.grad for parameter in experiment.parameters]
            own.subtract_(gradients, deltas[row])
            other.subtract_(gradients, -mean)

        return correct_row

    d, q = 10, 5
    experiment = Experiment(LeastSquares(80, SHAPES[d]), ORTHONORMAL, q, draws=150, size=20)
    signal = float(experiment.full.square().sum()) / experiment.variance
    measured = experiment.ratio(correct)
    assert_within_sampling_error(measured, 1 - q / d + 2 * q / d * (1 - q / d) * signal, most=0.1)
    assert measured[0] > 1 + 4 * measured[1]
