import functools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_vamo.core import estimate_gradient
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    GradientSubspaceDirections,
    OrthonormalDirections,
    RademacherDirections,
    SphereDirections,
)
from lightning_vamo.errors import InvalidArgumentError, NonFiniteLossError
from tests import reference
from tests.support.points import noise
from tests.support.problems import LeastSquares, LogisticRegression, classification_batch, classification_loss, seeded, tanh_mlp

SHAPES = [(2, 3), (), (0,), (3,)]
DIMENSION = 10
FAMILIES = [SphereDirections(), GaussianDirections(), RademacherDirections(), OrthonormalDirections(), CoordinateDirections()]


def family_name(value):
    return type(value).__name__ if hasattr(value, "draw") else None


DRAWS = 512
"""Estimates of a sample: with fewer, some errors would be larger than the tests let them be."""


@functools.cache
def sample(probes, family=0, difference="central"):
    """The estimates that several tests look at."""
    return estimates(LeastSquares(20, SHAPES), DRAWS, probes, difference, directions=FAMILIES[family])


def estimates(problem, draws, probes, difference="central", seed=0, **options):
    """Shape (draws, d): many estimates of the gradient at one point, and the exact one from the oracle."""
    parameters, generator = problem.start(), seeded(seed)
    options = {"mu": 0.5, "difference": difference, "generator": generator} | options
    rows = [estimate_gradient(lambda: problem.loss(parameters), parameters, probes, **options) for _ in range(draws)]
    exact = reference.least_squares_gradient(problem.a.numpy(), problem.b.numpy(), reference.flatten(parameters))
    return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows]), torch.from_numpy(exact)


def assert_unbiased(samples, exact, most):
    error = samples.std(dim=0) / len(samples) ** 0.5
    assert float(error.max()) < most * float(exact.norm())
    assert bool(((samples.mean(dim=0) - exact).abs() < 5 * error).all())


@pytest.mark.parametrize(("family", "probes"), [*((index, 4) for index in range(len(FAMILIES))), (0, 1), (4, 1)])
def test_the_mean_estimate_is_the_gradient(family, probes):
    assert_unbiased(*sample(probes, family), most=0.1)


@pytest.mark.parametrize("probes", [1, 4], ids=["two-point", "multi-point"])
def test_with_forward_differences_the_curvature_of_a_quadratic_averages_out(probes):
    assert_unbiased(*sample(probes, difference="forward"), most=0.1)


@pytest.mark.parametrize("probes", [1, 4], ids=["two-point", "multi-point"])
def test_the_error_of_the_mean_falls_as_one_over_the_root_of_the_number_of_estimates(probes):
    samples, exact = sample(probes)
    errors = {}
    for size in (4, 64):
        means = samples.view(-1, size, DIMENSION).mean(dim=1)
        errors[size] = float((means - exact).square().sum(dim=1).mean().sqrt())
    assert 3.0 < errors[4] / errors[64] < 5.2


@pytest.mark.parametrize("probes", [1, 4, 10])
def test_the_error_of_one_estimate_is_the_gradient_times_the_root_of_d_minus_one_over_q(probes):
    samples, exact = sample(probes)
    squares = (samples - exact).square().sum(dim=1) / exact.square().sum()
    error = float(squares.std()) / DRAWS**0.5
    assert float(squares.mean()) == pytest.approx((DIMENSION - 1) / probes, abs=5 * error)
    assert error < 0.1 * (DIMENSION - 1) / probes


@pytest.mark.parametrize(
    "family", [OrthonormalDirections(), OrthonormalDirections("seeded"), CoordinateDirections()], ids=family_name
)
def test_along_all_orthonormal_directions_the_estimate_on_a_quadratic_is_exact(family):
    samples, exact = estimates(LeastSquares(20, SHAPES), 1, DIMENSION, directions=family)
    assert samples[0].numpy() == pytest.approx(exact.numpy(), abs=1e-12)


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("probes", [1, 3])
def test_an_estimate_is_that_of_the_oracle(probes, difference):
    problem = LogisticRegression(20, SHAPES)
    parameters = problem.start()
    options = {"mu": 0.2, "difference": difference, "generator": seeded(5)}
    estimate = estimate_gradient(lambda: problem.loss(parameters), parameters, probes, **options)
    u = reference.matrix(SphereDirections().draw(parameters, probes, seeded(5)), parameters)
    a, b, x = problem.a.numpy(), problem.b.numpy(), reference.flatten(parameters)
    oracle = reference.estimate_gradient(lambda y: reference.logistic_loss(a, b, y), x, u, 0.2, difference)
    assert reference.flatten(estimate) == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize(("difference", "most"), [("forward", 0.02), ("central", 2e-3)])
def test_in_float32_with_the_automatic_radius_all_directions_give_the_gradient_of_a_network(difference, most):
    module = tanh_mlp(300)
    parameters = list(module.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    loss = classification_loss(module, classification_batch(module, 16))
    options = {"directions": CoordinateDirections(), "difference": difference, "generator": seeded(0)}
    estimate = reference.flatten(estimate_gradient(loss, parameters, count, **options))
    exact = reference.flatten(torch.autograd.grad(loss(), parameters))
    assert np.linalg.norm(estimate - exact) < most * np.linalg.norm(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_estimate_has_the_parameters_shapes_and_types(dtype):
    module = nn.Linear(4, 3).to(dtype)
    parameters = list(module.parameters())
    inputs = torch.ones(2, 4, dtype=dtype)
    estimate = estimate_gradient(lambda: module(inputs).square().sum(), parameters, 3, generator=seeded(0))
    assert [part.shape for part in estimate] == [parameter.shape for parameter in parameters]
    assert [part.dtype for part in estimate] == [dtype, dtype]
    assert not any(part.requires_grad for part in estimate)
    assert all(bool(part.isfinite().all()) and bool(part.any()) for part in estimate)


@pytest.mark.parametrize("family", FAMILIES, ids=family_name)
def test_a_modules_parameters_are_restored_bit_for_bit_and_get_no_gradients(family):
    module = tanh_mlp(300)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    loss = classification_loss(module, classification_batch(module, 8))
    estimate_gradient(loss, list(module.parameters()), 5, directions=family, difference="central", generator=seeded(0))
    for parameter, old in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter.detach().view(torch.int32), old.view(torch.int32))
        assert parameter.requires_grad
        assert parameter.grad is None


def test_parameters_are_restored_bit_for_bit_when_the_loss_fails():
    parameter = torch.randn(1000, generator=seeded(0))
    before, calls = parameter.clone(), []

    def loss():
        calls.append(1)
        if len(calls) == 4:
            raise ZeroDivisionError
        return parameter.sum()

    with pytest.raises(ZeroDivisionError):
        estimate_gradient(loss, [parameter], 5, generator=seeded(0))
    assert torch.equal(parameter.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("generator", [None, 5])
def test_the_global_random_state_is_untouched(generator):
    parameters = [torch.ones(10)]
    state = torch.get_rng_state()
    options = {} if generator is None else {"generator": seeded(generator)}
    estimate_gradient(lambda: parameters[0].sum(), parameters, 3, **options)
    assert torch.equal(state, torch.get_rng_state())


def test_estimates_repeat_with_the_generators_seed_and_differ_without_one():
    parameters = [torch.ones(10)]

    def estimate(**options):
        return estimate_gradient(lambda: parameters[0].sum(), parameters, 3, **options)[0]

    assert torch.equal(estimate(generator=seeded(1)), estimate(generator=seeded(1)))
    assert not torch.equal(estimate(generator=seeded(1)), estimate(generator=seeded(2)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = estimate()
        torch.manual_seed(0)
        assert not torch.equal(first, estimate())  # the global seed has no say
    generator = seeded(1)
    assert not torch.equal(estimate(generator=generator), estimate(generator=generator))


@pytest.mark.parametrize(("difference", "calls"), [("forward", 5), ("central", 9)])
def test_the_loss_is_evaluated_without_gradients_as_often_as_announced(difference, calls):
    module, seen = nn.Linear(3, 1), []

    def loss():
        value = module(torch.ones(1, 3)).sum()
        seen.append(value.requires_grad)
        return value

    estimate_gradient(loss, list(module.parameters()), 4, difference=difference, generator=seeded(0))
    assert seen == [False] * calls
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 0.0}, "`mu` must be a positive, finite number or 'auto', got 0.0"),
        ({"mu": -1.0}, "`mu` must be a positive, finite number or 'auto', got -1.0"),
        ({"difference": "backward"}, "`difference` must be one of"),
        ({"probes": 0}, "`probes` must be a whole number >= 1, got 0"),
        ({"probes": 4, "directions": OrthonormalDirections()}, "use at most 3 probes"),
        ({"parameters": []}, "`parameters` holds no numbers"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_loss_is_evaluated(options, message):
    def loss():
        raise AssertionError("evaluated")

    with pytest.raises(InvalidArgumentError) as error:
        estimate_gradient(loss, **({"parameters": [torch.ones(3)]} | options))
    assert message in str(error.value)


def test_a_modules_parameters_can_be_passed_as_they_come():
    module = torch.nn.Linear(3, 1)
    estimate = estimate_gradient(lambda: module(torch.ones(3)).sum(), module.parameters(), 2)
    assert [part.shape for part in estimate] == [part.shape for part in module.parameters()]


def test_a_loss_that_is_not_finite_is_refused():
    x = torch.ones(2)
    with pytest.raises(NonFiniteLossError, match="`loss` must be finite at the given point and around it, got"):
        estimate_gradient(lambda: x.sum() / 0, [x])
    assert x.tolist() == [1, 1]


@pytest.mark.parametrize("loss", [lambda: "1.0", lambda: torch.zeros(2)])
def test_a_loss_that_is_no_number_is_refused(loss):
    with pytest.raises(InvalidArgumentError, match="`loss` must be a number or a tensor of one element"):
        estimate_gradient(loss, [torch.ones(2)])


def test_directions_that_are_not_orthogonal_are_summed_with_their_slopes():
    parameters = noise([(3, 2), (2,)], torch.float64)
    family, slope = GradientSubspaceDirections(), noise([(3, 2), (2,)], torch.float64, seed=5)
    drawn = family.draw(parameters, 8, seeded(3)).dense(parameters)
    assert not torch.allclose(drawn @ drawn.T, torch.eye(8, dtype=torch.float64), atol=1e-2)

    def loss():
        return sum((one * other).sum() for one, other in zip(parameters, slope, strict=True))

    found = estimate_gradient(loss, parameters, 8, directions=family, mu=1e-2, difference="central", generator=seeded(3))
    exact = torch.cat([part.reshape(-1) for part in slope])
    torch.testing.assert_close(torch.cat([part.reshape(-1) for part in found]), drawn.T @ (drawn @ exact), rtol=1e-6, atol=1e-6)
