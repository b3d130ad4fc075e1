import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_vamo.core.directions import OrthonormalDirections, SphereDirections
from lightning_vamo.core.probes.difference import check_difference, perturbed_losses, probe_differences, probe_losses
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import auto_mu, check_mu
from lightning_vamo.errors import InvalidArgumentError
from tests import reference
from tests.support.bits import same_bits
from tests.support.problems import (
    LeastSquares,
    LogisticRegression,
    classification_batch,
    classification_loss,
    probe_table,
    seeded,
    softmax_regression,
    tanh_mlp,
)

SHAPES = [(3, 4), (), (0,), (5,)]
SCHEMES = ["forward", "central"]

# Forward-mode differentiation in torch 2.13 compiles its decompositions with what torch itself deprecates.
quiet_jvp = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


def points(dtype=torch.float32):
    """Parameters of several layouts, with numbers that a subtraction would not bring back."""
    generator = seeded(3)
    matrix = torch.randn(5, 4, generator=generator).to(dtype)
    matrix[0] = torch.tensor([-0.0, float("inf"), float("nan"), torch.finfo(dtype).smallest_normal / 2])
    kernel = torch.randn(2, 3, 2, 2, generator=generator).to(dtype).to(memory_format=torch.channels_last)
    return [matrix.t(), kernel, torch.randn(7, generator=generator).to(dtype)[::2], torch.tensor(1e-30, dtype=dtype)]


# The snapshot


@pytest.mark.parametrize("storage", ["stored", "seeded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_snapshot_restores_every_bit(dtype, storage):
    parameters = points(dtype)
    before = [parameter.clone() for parameter in parameters]
    directions = SphereDirections(storage).draw(parameters, 2, seeded(0))
    with Point(parameters) as snapshot:
        snapshot.perturb(directions, 0, 0.3)
        assert not same_bits(parameters, before)
        snapshot.restore()
        assert same_bits(parameters, before)
        snapshot.perturb(directions, 1, -1e3)
    assert same_bits(parameters, before)


def test_a_snapshot_restores_every_bit_after_an_error():
    parameters = points()
    before = [parameter.clone() for parameter in parameters]
    directions = SphereDirections().draw(parameters, 3, seeded(0))
    calls = []

    def loss():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return parameters[2].sum()

    with pytest.raises(KeyboardInterrupt), Point(parameters) as snapshot:
        probe_losses(loss, snapshot, directions, 0.1, "forward")
    assert len(calls) == 3
    assert same_bits(parameters, before)


def test_a_snapshot_shares_no_storage_with_the_parameters():
    parameters = [torch.ones(3), torch.ones(2, 2)]
    snapshot = Point(parameters)
    for parameter in parameters:
        parameter.fill_(5.0)
    snapshot.restore()
    assert all(torch.equal(parameter, torch.ones_like(parameter)) for parameter in parameters)


def test_a_snapshot_keeps_the_parameters_themselves_their_gradients_and_their_flags():
    module = nn.Linear(3, 2)
    module(torch.ones(1, 3)).sum().backward()
    module.bias.requires_grad_(False)
    weight, storage, gradient = module.weight, module.weight.data_ptr(), module.weight.grad.clone()
    with Point([module.weight, module.bias]) as snapshot:
        snapshot.perturb(SphereDirections().draw([module.weight, module.bias], 1, seeded(0)), 0, 1.0)
    assert module.weight is weight
    assert module.weight.data_ptr() == storage
    assert torch.equal(module.weight.grad, gradient)
    assert (module.weight.requires_grad, module.bias.requires_grad) == (True, False)
    assert module.weight.is_leaf
    assert module.weight.grad_fn is None


def test_perturbations_start_at_the_snapshot_and_do_not_add_up():
    problem = LeastSquares(10, SHAPES)
    parameters = problem.start()
    x = reference.flatten(parameters)
    directions = SphereDirections().draw(parameters, 3, seeded(0))
    u = reference.matrix(directions, parameters)
    with Point(parameters) as snapshot:
        for index, distance in ((0, 0.5), (2, 0.5), (2, -0.5), (1, 3.0)):
            snapshot.perturb(directions, index, distance)
            assert reference.flatten(parameters) == pytest.approx(x + distance * u[index], abs=1e-14)


# Probe losses and differences against the oracle


@pytest.mark.parametrize("difference", SCHEMES)
@pytest.mark.parametrize("storage", ["stored", "seeded"])
def test_probe_losses_and_differences_are_those_of_the_oracle(storage, difference):
    problem = LogisticRegression(20, SHAPES)
    parameters = problem.start()
    x, a, b = reference.flatten(parameters), problem.a.numpy(), problem.b.numpy()
    directions = SphereDirections(storage).draw(parameters, 4, seeded(0))
    u = reference.matrix(directions, parameters)
    calls = []

    def loss():
        calls.append(1)
        return problem.loss(parameters)

    with Point(parameters) as snapshot:
        losses = probe_losses(loss, snapshot, directions, 0.1, difference)
        assert (reference.flatten(parameters) == x).all()  # for whoever looks at the weights between two batches
    oracle = reference.probe_losses(lambda y: reference.logistic_loss(a, b, y), x, u, 0.1, difference)
    assert len(calls) == len(losses) == {"forward": 5, "central": 9}[difference]
    assert losses.numpy() == pytest.approx(oracle, rel=1e-13)
    deltas = probe_differences(losses, 0.1, difference)
    slopes = reference.probe_differences(lambda y: reference.logistic_loss(a, b, y), x, u, 0.1, difference)
    assert deltas.numpy() == pytest.approx(slopes, abs=1e-13)


@pytest.mark.parametrize("difference", SCHEMES)
def test_differences_of_a_table_are_those_of_its_rows(difference):
    problem = LogisticRegression(20, SHAPES)
    parameters = problem.start()
    directions = SphereDirections().draw(parameters, 3, seeded(0))
    batches = [[0, 1, 2], [3, 4], list(range(5, 20))]
    table = probe_table(problem, parameters, batches, directions, 0.2, difference)
    assert table.shape == (3, 3)
    x, u = reference.flatten(parameters), reference.matrix(directions, parameters)
    for row, batch in zip(table, batches, strict=True):
        a, b = problem.a[batch].numpy(), problem.b[batch].numpy()
        slopes = reference.probe_differences(lambda y, a=a, b=b: reference.logistic_loss(a, b, y), x, u, 0.2, difference)
        assert row.numpy() == pytest.approx(slopes, abs=1e-13)


def test_on_a_quadratic_central_differences_are_exact_and_forward_ones_off_by_half_the_curvature():
    problem, mu = LeastSquares(20, SHAPES), 0.7
    parameters = problem.start()
    directions = SphereDirections().draw(parameters, 5, seeded(0))
    u = reference.matrix(directions, parameters)
    a, b = problem.a.numpy(), problem.b.numpy()
    slopes = u @ reference.least_squares_gradient(a, b, reference.flatten(parameters))
    curvatures = np.array([row @ (a.T @ a / len(b)) @ row for row in u])
    rows = [list(range(20))]
    central = probe_table(problem, parameters, rows, directions, mu, "central")[0]
    forward = probe_table(problem, parameters, rows, directions, mu, "forward")[0]
    assert central.numpy() == pytest.approx(slopes, abs=1e-13)
    assert forward.numpy() == pytest.approx(slopes + mu / 2 * curvatures, abs=1e-13)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_losses_are_at_least_float32(dtype, expected):
    module = nn.Linear(4, 3).to(dtype)
    parameters = list(module.parameters())
    inputs, labels = torch.ones(2, 4, dtype=dtype), torch.tensor([0, 2])
    directions = SphereDirections().draw(parameters, 2, seeded(0))
    with Point(parameters) as snapshot:
        losses = probe_losses(classification_loss(module, (inputs, labels)), snapshot, directions, 0.1, "forward")
    assert classification_loss(module, (inputs, labels))().dtype == dtype
    assert losses.dtype == expected
    assert not losses.requires_grad
    assert probe_differences(losses, 0.1, "forward").dtype == expected


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,), (2, 3)])
@pytest.mark.parametrize("difference", SCHEMES)
def test_losses_of_any_shape_are_evaluated_together(shape, difference):
    parameters = [torch.ones(3)]
    directions = OrthonormalDirections().draw(parameters, 3, seeded(0))
    factors = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
    with Point(parameters) as snapshot:
        one = probe_losses(lambda: parameters[0].square().sum(), snapshot, directions, 0.1, difference)
        losses = probe_losses(lambda: factors * parameters[0].square().sum(), snapshot, directions, 0.1, difference)
    assert losses.shape == (*shape, len(one))
    assert torch.equal(losses, factors[..., None] * one)


def test_some_of_the_directions_only():
    parameters = [torch.ones(3)]
    directions = OrthonormalDirections().draw(parameters, 3, seeded(0))
    with Point(parameters) as snapshot:
        every, some = (
            perturbed_losses(lambda: parameters[0].square().sum(), snapshot, directions, 0.1, "central", indices)
            for indices in (None, [2, 0])
        )
    assert torch.equal(some, every[[2, 0, 5, 3]])


# The automatic smoothing radius


@quiet_jvp
@pytest.mark.parametrize("dimension", [10, 10**3, 10**5, 10**7])
@pytest.mark.parametrize("build", [softmax_regression, tanh_mlp])
def test_with_the_automatic_radius_probe_differences_are_within_two_percent_of_the_slopes(build, dimension):
    module = build(dimension)
    parameters = dict(module.named_parameters())
    points = list(parameters.values())
    actual = sum(point.numel() for point in points)
    assert actual == pytest.approx(dimension, rel=0.1)
    batch = classification_batch(module, 64 if dimension < 10**5 else 4)
    count = 16 if dimension < 10**7 else 6
    directions = SphereDirections("stored" if dimension < 10**6 else "seeded").draw(points, count, seeded(1))

    losses = {}
    with torch.no_grad(), Point(points) as snapshot:
        for difference in SCHEMES:
            losses[difference] = probe_losses(
                classification_loss(module, batch), snapshot, directions, auto_mu(points, difference), difference
            )
    slopes = exact_slopes(module, batch, directions)
    for difference in SCHEMES:
        deltas = probe_differences(losses[difference], auto_mu(points, difference), difference).double()
        assert float(((deltas - slopes) / slopes).abs().median()) < 0.02


def exact_slopes(module, batch, directions):
    """Directional derivatives in float64, by forward-mode differentiation."""
    wide = copy.deepcopy(module).double()
    at = {name: parameter.detach() for name, parameter in wide.named_parameters()}
    inputs, labels = batch[0].double(), batch[1]

    def loss(values):
        return nn.functional.cross_entropy(torch.func.functional_call(wide, values, (inputs,)), labels)

    origin = [torch.zeros(value.shape) for value in at.values()]
    step = [torch.empty(value.shape) for value in at.values()]
    slopes = []
    for index in range(directions.count):
        directions.move(step, origin, index, 1.0)
        tangent = {name: part.double() for name, part in zip(at, step, strict=True)}
        slopes.append(torch.func.jvp(loss, (at,), (tangent,))[1])
    return torch.stack(slopes)


@quiet_jvp
def test_a_fixed_radius_would_drown_in_rounding_where_the_automatic_one_does_not():
    module = softmax_regression(10**6)
    points = list(module.parameters())
    batch = classification_batch(module, 4)
    directions = SphereDirections().draw(points, 16, seeded(1))
    slopes = exact_slopes(module, batch, directions)
    with torch.no_grad(), Point(points) as snapshot:
        losses = probe_losses(classification_loss(module, batch), snapshot, directions, 1e-5, "forward")
    deltas = probe_differences(losses, 1e-5, "forward").double()
    assert float(((deltas - slopes) / slopes).abs().median()) > 0.2


@pytest.mark.parametrize(("difference", "exponent"), [("forward", 2 / 5), ("central", 1 / 3)])
def test_the_automatic_radius_follows_its_rule(difference, exponent):
    points = [torch.full((3, 4), 2.0), torch.tensor(1.0), torch.zeros(0)]
    assert auto_mu(points, difference) == pytest.approx(2 ** (-23 * exponent) * 8, rel=1e-12)  # 1 + the root of 49
    assert auto_mu([point.double() for point in points], difference) == pytest.approx(2 ** (-52 * exponent) * 8, rel=1e-12)
    steep = {"forward": 1 / 2, "central": exponent}[difference]
    assert auto_mu(points, difference, steep=True) == pytest.approx(2 ** (-23 * steep) * 8, rel=1e-12)


@pytest.mark.parametrize("difference", SCHEMES)
def test_the_automatic_radius_grows_with_the_parameters_and_is_positive_at_zero(difference):
    point = torch.randn(1000, generator=seeded(0))
    radii = [auto_mu([scale * point], difference) for scale in (0.0, 1.0, 100.0, 10_000.0)]
    assert 0 < radii[0] < radii[1] < radii[2] < radii[3]
    assert radii[3] / radii[2] == pytest.approx(100, rel=0.01)


def test_the_automatic_radius_fits_the_arithmetic():
    point = torch.ones(10)
    assert auto_mu([point.bfloat16()]) > auto_mu([point.half()]) > auto_mu([point]) > auto_mu([point.double()])
    assert auto_mu([point], dtype=torch.bfloat16) == auto_mu([point.bfloat16()])
    assert auto_mu([point], dtype=torch.float64) == auto_mu([point.double()])
    joint = auto_mu([point, point.bfloat16(), point.double()])
    assert joint == pytest.approx(2 ** (-7 * 2 / 5) * (1 + 30**0.5))  # the coarsest


def test_the_norm_behind_the_automatic_radius_does_not_overflow():
    points = [torch.full((1000,), 1e4, dtype=torch.float16), torch.full((10,), 1e30)]
    assert auto_mu(points, dtype=torch.float32) == pytest.approx(2 ** (-23 * 2 / 5) * 10**0.5 * 1e30, rel=1e-6)


def test_the_automatic_radius_leaves_the_parameters_alone():
    module = nn.Linear(3, 3)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    assert isinstance(auto_mu(list(module.parameters())), float)
    assert same_bits(module.parameters(), before)


# Errors


@pytest.mark.parametrize("mu", [0, 0.0, -1e-3, float("inf"), float("nan"), "Auto", None, True, torch.tensor(0.1)])
def test_a_radius_that_is_not_a_positive_number_is_refused(mu):
    with pytest.raises(InvalidArgumentError, match=r"`mu` must be a positive, finite number or 'auto', got ") as error:
        check_mu(mu)
    assert repr(mu) in str(error.value)


@pytest.mark.parametrize("mu", ["auto", 1, 1e-9, 1e9])
def test_a_positive_radius_and_auto_are_accepted(mu):
    check_mu(mu)


@pytest.mark.parametrize("difference", ["backward", "", None])
def test_an_unknown_difference_is_refused(difference):
    message = r"`difference` must be one of 'forward', 'central', got " + repr(difference)
    with pytest.raises(InvalidArgumentError, match=message):
        check_difference(difference)
    with pytest.raises(InvalidArgumentError, match=message):
        auto_mu([torch.ones(1)], difference)
