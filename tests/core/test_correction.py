import numpy as np
import pytest
import torch
from torch import nn

from lightning_vamo.core import ControlVariate
from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import effective_coefficient
from lightning_vamo.core.control.rows import Rows
from lightning_vamo.core.directions import CoordinateDirections, GaussianDirections, OrthonormalDirections, SphereDirections
from lightning_vamo.errors import UnsupportedError
from tests import reference
from tests.support.problems import LeastSquares, LogisticRegression, batches_of, probe_table, seeded

SHAPES = [(3, 4), (), (0,), (5,)]
DIMENSION = 18
FAMILIES = [
    SphereDirections(),
    SphereDirections("seeded"),
    GaussianDirections(),
    OrthonormalDirections(),
    CoordinateDirections(),
]


def correction_at(problem, parameters, batches, family, count, alpha, difference="central", mu=0.3):
    directions = family.draw(parameters, count, seeded(4))
    deltas = probe_table(problem, parameters, batches, directions, mu, difference)
    beta = effective_coefficient(alpha, count, directions.dimension)
    weights = torch.tensor([len(batch) for batch in batches])
    return Correction(parameters, directions, ControlVariate(deltas, weights, beta))


def set_gradients(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def parts(flat):
    """A flat vector as copies of its parts of the parameters' sizes."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    return [part.clone() for part in torch.from_numpy(flat).split(sizes)]


# One step against the oracle


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("alpha", ["theory", 0.1, 1.0])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_the_corrected_gradient_is_vamos_as_the_paper_writes_it(family, alpha, difference):
    problem, count, mu = LogisticRegression(21, SHAPES), 5, 0.3
    parameters, iterate = problem.start(), problem.start(seed=2)
    batches = batches_of(21, 6, seed=0)
    correction = correction_at(problem, parameters, batches, family, count, alpha, difference, mu)

    x, u = reference.flatten(parameters), reference.matrix(correction.directions, parameters)
    a, b = problem.a.numpy(), problem.b.numpy()
    own = [
        reference.estimate_gradient(lambda y, i=batch: reference.logistic_loss(a[i], b[i], y), x, u, mu, difference)
        for batch in batches
    ]
    whole = reference.estimate_gradient(lambda y: reference.logistic_loss(a, b, y), x, u, mu, difference)
    for row, batch in enumerate(batches):
        set_gradients(parameters, problem.gradients(iterate, batch))
        correction.apply([row])
        gradient = reference.logistic_gradient(a[batch], b[batch], reference.flatten(iterate))
        oracle = reference.vamo_gradient(gradient, own[row], whole, count / DIMENSION if alpha == "theory" else alpha)
        assert reference.flatten([parameter.grad for parameter in parameters]) == pytest.approx(oracle, abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_the_corrections_of_an_epoch_cancel(family):
    problem = LogisticRegression(21, SHAPES)
    parameters, batches = problem.start(), batches_of(21, 6, seed=0)
    correction = correction_at(problem, parameters, batches, family, 5, "theory")
    total = np.zeros(DIMENSION)
    for row, batch in enumerate(batches):
        set_gradients(parameters, problem.gradients(parameters, batch))
        correction.apply([row])
        total += len(batch) / 21 * reference.flatten([parameter.grad for parameter in parameters])
    assert total == pytest.approx(reference.flatten(problem.gradients(parameters)), abs=1e-13)


def test_a_step_that_accumulated_batches_gets_the_mean_of_their_corrections():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, OrthonormalDirections(), 5, "theory")
    means = []
    for row in (1, 2, 3):
        set_gradients(parameters, problem.gradients(parameters, batches[row]))
        correction.apply([row])
        means.append(reference.flatten([parameter.grad for parameter in parameters]) / 3)
    together = [torch.zeros_like(parameter) for parameter in parameters]
    for row in (1, 2, 3):
        for total, part in zip(together, problem.gradients(parameters, batches[row]), strict=True):
            total.add_(part / 3)
    set_gradients(parameters, together)
    correction.apply([1, 2, 3], accumulated=3)
    assert reference.flatten([parameter.grad for parameter in parameters]) == pytest.approx(sum(means), abs=1e-13)


def test_an_incomplete_accumulation_is_divided_by_the_full_number_of_batches():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, OrthonormalDirections(), 5, "theory")
    set_gradients(parameters, [torch.zeros_like(parameter) for parameter in parameters])
    correction.apply([4], accumulated=3)
    u = reference.matrix(correction.directions, parameters)
    expected = -correction.control.correction(4).numpy() @ u / 3
    assert reference.flatten([parameter.grad for parameter in parameters]) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_a_parameter_without_gradient_stays_out_and_the_others_are_corrected_as_ever(family):
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, family, 5, "theory")
    gradients = problem.gradients(parameters, batches[2])
    set_gradients(parameters, [gradient.clone() for gradient in gradients])
    correction.apply([2])
    complete = [parameter.grad.clone() for parameter in parameters]
    set_gradients(parameters, [None, *(gradient.clone() for gradient in gradients[1:])])
    norms = correction.apply([2])
    assert parameters[0].grad is None
    for parameter, expected in zip(parameters[1:], complete[1:], strict=True):
        assert torch.allclose(parameter.grad, expected, rtol=0, atol=1e-14)
    assert float(norms[0]) == pytest.approx(sum(float(gradient.square().sum()) for gradient in gradients[1:]), rel=1e-6)


def test_the_squared_norm_and_what_was_removed_of_it_are_returned():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, OrthonormalDirections(), 9, "theory")
    set_gradients(parameters, problem.gradients(parameters, batches[2]))
    before = float(np.sum(reference.flatten([parameter.grad for parameter in parameters]) ** 2))
    norms = correction.apply([2])
    after = float(np.sum(reference.flatten([parameter.grad for parameter in parameters]) ** 2))
    assert norms.shape == (2,)
    assert norms.tolist() == pytest.approx([before, before - after], rel=1e-6)
    assert abs(before - after) > 0.01 * before


def test_coefficients_are_scaled_as_the_gradients_are():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, OrthonormalDirections(), 5, "theory")
    plain, scaled = problem.gradients(parameters, batches[0]), problem.gradients(parameters, batches[0])
    set_gradients(parameters, plain)
    unscaled = correction.apply([0])
    expected = 1024 * reference.flatten(plain)
    set_gradients(parameters, [gradient * 1024 for gradient in scaled])
    seen = []

    def scale(coefficients):
        seen.append(coefficients.clone())
        return coefficients * 1024

    moments = correction.apply([0], scale=scale)
    assert torch.equal(seen[0], correction.control.correction(0))
    assert moments[0].item() == pytest.approx(unscaled[0].item(), rel=1e-12)
    assert moments[1].item() == pytest.approx(unscaled[1].item(), rel=1e-12)
    assert reference.flatten([parameter.grad for parameter in parameters]) == pytest.approx(expected, rel=1e-12)


# Where there is nothing to correct


def test_at_beta_zero_gradients_are_left_bit_for_bit():
    problem = LeastSquares(20, SHAPES, dtype=torch.float32)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, SphereDirections(), 5, 0.0)
    gradients = problem.gradients(parameters, batches[0])
    gradients[0][0, 0] = -0.0
    gradients[0][0, 1] = float("nan")
    set_gradients(parameters, [gradient.clone() for gradient in gradients])
    assert correction.apply([0]) is None
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert torch.equal(parameter.grad.view(torch.int32), gradient.view(torch.int32))


def test_without_rows_or_gradients_nothing_is_done():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, SphereDirections(), 5, "theory")
    set_gradients(parameters, [None] * 4)
    assert correction.apply([0]) is None
    gradients = problem.gradients(parameters, batches[0])
    set_gradients(parameters, [gradient.clone() for gradient in gradients])
    assert correction.apply([]) is None
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(parameters, gradients, strict=True))


def test_a_row_outside_the_plan_is_an_index_error_and_leaves_the_gradients():
    problem = LeastSquares(20, SHAPES)
    parameters, batches = problem.start(), batches_of(20, 4, seed=0)
    correction = correction_at(problem, parameters, batches, SphereDirections(), 5, "theory")
    gradients = problem.gradients(parameters, batches[0])
    set_gradients(parameters, [gradient.clone() for gradient in gradients])
    with pytest.raises(IndexError, match="`key`"):
        correction.apply([0, 5])
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_inner_products_are_taken_over_all_tensors_in_at_least_float32(family, dtype):
    parameters = [torch.zeros(30, 40, dtype=dtype), torch.zeros((), dtype=dtype), torch.zeros(0, dtype=dtype)]
    directions = family.draw(parameters, 3, seeded(0))
    vectors = [torch.full((30, 40), 1.0, dtype=dtype), torch.tensor(-1.0, dtype=dtype), torch.zeros(0, dtype=dtype)]
    step = torch.tensor([1.0, 2.0, -1.0]).double() @ directions.dense(parameters).double()
    products = directions.subtract_(vectors, torch.tensor([1.0, 2.0, -1.0]))
    assert products.dtype == torch.float64
    g = torch.cat([torch.ones(1200), -torch.ones(1)]).double()
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-5
    assert products.tolist() == pytest.approx([1201, float(g @ step), float(step @ step)], rel=tolerance, abs=tolerance)


# A whole training: VAMO with all directions is first-order SVRG


def vamo(problem, parameters, plans, family, count, rate, mu):
    """VAMO out of the core's parts and torch's own SGD; one row per step."""
    optimizer = torch.optim.SGD(parameters, lr=rate)
    generator, trajectory = seeded(6), []
    for plan in plans:
        directions = family.draw(parameters, count, generator)
        deltas = probe_table(problem, parameters, plan, directions, mu, "central")
        beta = effective_coefficient("theory", directions.count, directions.dimension)
        control = ControlVariate(deltas, torch.tensor([len(batch) for batch in plan]), beta)
        correction = Correction(parameters, directions, control)
        for row, batch in enumerate(plan):
            optimizer.zero_grad()
            problem.loss(parameters, batch).backward()
            correction.apply([row])
            optimizer.step()
            trajectory.append(reference.flatten(parameters))
    return np.stack(trajectory)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("family", [OrthonormalDirections(), CoordinateDirections()], ids=lambda family: type(family).__name__)
def test_with_all_directions_vamo_follows_first_order_svrg(family, dtype, most):
    problem = LeastSquares(50, SHAPES, dtype=dtype)
    plans = [batches_of(50, 8, seed=epoch) for epoch in range(6)]  # the last batch of each holds 2 samples
    parameters = problem.start(requires_grad=True)
    data = problem.a.double().numpy(), problem.b.double().numpy(), reference.flatten(parameters)
    oracle = reference.fo_svrg(*data, plans, rate=0.03)
    trajectory = vamo(problem, parameters, plans, family, DIMENSION, rate=0.03, mu=0.5)
    assert trajectory.shape == (42, DIMENSION)
    assert np.abs(trajectory - oracle).max() < most
    # What it is compared with moves, and is not SGD.
    assert np.abs(oracle[-1] - data[2]).max() > 1
    assert np.abs(oracle - reference.sgd(*data, plans, rate=0.03)).max() > 0.01


def test_with_half_of_the_directions_vamo_stays_nearer_to_the_optimum_than_sgd():
    # SGD is driven away from the optimum by its noise, first-order SVRG stays.
    problem = LeastSquares(50, SHAPES)
    plans = [batches_of(50, 8, seed=epoch) for epoch in range(20)]
    a, b = problem.a.numpy(), problem.b.numpy()
    optimum = np.linalg.lstsq(a, b, rcond=None)[0]
    parameters = [part.view(shape).requires_grad_() for part, shape in zip(parts(optimum), problem.shapes, strict=True)]

    def gap(trajectory):
        best = reference.least_squares_loss(a, b, optimum)
        return np.mean([reference.least_squares_loss(a, b, x) - best for x in trajectory])

    half = gap(vamo(problem, parameters, plans, OrthonormalDirections(), DIMENSION // 2, rate=0.03, mu=0.5))
    svrg, sgd = (gap(method(a, b, optimum, plans, rate=0.03)) for method in (reference.fo_svrg, reference.sgd))
    assert svrg < 1e-12
    assert 0.1 * sgd < half < 0.75 * sgd


def test_a_modules_gradients_are_corrected_in_place():
    module = nn.Linear(4, 3)
    parameters = list(module.parameters())
    directions = OrthonormalDirections().draw(parameters, 2, seeded(0))
    control = ControlVariate(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]), torch.ones(2), 1.0)
    module(torch.ones(2, 4)).square().sum().backward()
    gradient = module.weight.grad
    before = reference.flatten([parameter.grad for parameter in parameters])
    Correction(parameters, directions, control).apply([0])
    expected = before - np.array([1.0, 1.0]) @ reference.matrix(directions, parameters)
    assert module.weight.grad is gradient
    assert reference.flatten([parameter.grad for parameter in parameters]) == pytest.approx(expected, abs=1e-5)


def test_what_was_removed_is_exact_where_a_difference_of_norms_would_be_rounding():
    parameters = [torch.nn.Parameter(torch.zeros(300_000))]
    directions = SphereDirections().draw(parameters, 1, seeded(0))
    control = ControlVariate(torch.tensor([[1e-3], [-1e-3]]), torch.ones(2), 1.0)
    gradient = torch.randn(300_000, generator=seeded(1))
    parameters[0].grad = gradient.clone()
    square, removed = Correction(parameters, directions, control).apply([0]).tolist()
    step = 1e-3 * directions.dense(parameters)[0].double()
    assert square == pytest.approx(float(gradient.double().square().sum()), rel=1e-5)
    assert removed == pytest.approx(float(2 * gradient.double() @ step - step @ step), rel=1e-3)


def test_gradients_that_overflowed_are_corrected_but_not_counted():
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    directions = SphereDirections().draw(parameters, 1, seeded(0))
    control = ControlVariate(torch.tensor([[1.0], [-1.0]]), torch.ones(2), 1.0)
    parameters[0].grad = torch.tensor([1.0, float("inf"), 0.0])
    assert Correction(parameters, directions, control).apply([0]).tolist() == [0, 0]


def test_sparse_gradients_are_refused():
    embedding = torch.nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    parameters = list(embedding.parameters())
    directions = SphereDirections().draw(parameters, 1, seeded(0))
    control = ControlVariate(torch.tensor([[1.0], [-1.0]]), torch.ones(2), 1.0)
    with pytest.raises(UnsupportedError, match="sparse=False"):
        Correction(parameters, directions, control).apply([0])


# Rows and coefficients of one's own


class NotedRows(Rows):
    """Note what a step tells them."""

    def __init__(self, notes, wants_slopes, ready):
        self.beta = 1.0
        self.notes, self.wants_slopes, self.ready = notes, wants_slopes, ready

    def correction(self, key):
        return torch.tensor([float(key), 0.0])

    def refresh(self, keys, slopes, accumulated=1):
        self.notes.append(("refresh", keys, slopes.coordinates.tolist(), accumulated))


class NotedCoefficient(Coefficient):
    """Notes what a step tells it."""

    def __init__(self, notes, wants_slopes):
        self.notes, self.wants_slopes = notes, wants_slopes

    def factors(self, progress):
        return 1.0

    def observe(self, slopes, row):
        self.notes.append(("observe", slopes.coordinates.tolist(), row.tolist()))


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("coefficient_wants", [True, False])
@pytest.mark.parametrize("rows_want", [True, False])
def test_any_rows_and_any_coefficient_are_told_of_a_step_if_they_want_its_slopes(rows_want, coefficient_wants, ready):
    parameters = [torch.zeros(2)]
    directions = CoordinateDirections().draw(parameters, 2, seeded(0))
    notes = []
    rows, coefficient = NotedRows(notes, rows_want, ready), NotedCoefficient(notes, coefficient_wants)
    correction = Correction(parameters, directions, rows, coefficient=coefficient)
    parameters[0].grad = torch.ones(2)
    moments = correction.apply([3, 5], accumulated=2)
    told = [("refresh", [3, 5], [1.0, 1.0], 2), ("observe", [1.0, 1.0], [4.0, 0.0])][: 1 + ready]
    assert notes == (told if rows_want or coefficient_wants else [])
    assert (moments is None) != ready
    assert sorted(parameters[0].grad.tolist()) == ([-3.0, 1.0] if ready else [1.0, 1.0])


# A rank that keeps its part of a row out


@pytest.mark.parametrize("scale", [None, lambda value: value * 2.0**10])
@pytest.mark.parametrize("storage", ["stored", "seeded"])
def test_what_is_withheld_is_this_ranks_part_of_the_row(storage, scale):
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    unused, frozen = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double())
    parameters = [*module.parameters(), unused, frozen]
    directions = SphereDirections(storage).draw(parameters, 3, seeded(0))
    whole, own = (ControlVariate(torch.randn(5, 3, generator=seeded(s)).double(), torch.ones(5), 0.7) for s in (1, 2))
    correction = Correction(parameters, directions, whole, own)
    frozen.requires_grad_(False)
    factor = 1.0 if scale is None else 2.0**10

    def backward():
        # Twice through the first weight, whose gradient is one all the same.
        (module(torch.ones(2, 3).double()).sum() * factor + factor * module[0].weight.sum()).backward()

    backward()
    expected = [None if parameter.grad is None else 2 * parameter.grad.clone() for parameter in parameters]
    row = directions.dense(parameters).T @ own.correction(2) / 4 * factor
    sizes = [parameter.numel() for parameter in parameters]
    with correction.withheld(2, 4, scale):
        backward()
    backward_hooks = [parameter._backward_hooks for parameter in parameters if parameter._backward_hooks]
    assert backward_hooks == []
    for parameter, before, part in zip(parameters, expected, row.split(sizes), strict=True):
        assert (parameter.grad is None) == (before is None)
        if before is not None:
            assert torch.allclose(parameter.grad, before + part.view(parameter.shape), rtol=1e-12, atol=1e-12)
    assert unused.grad is None


def test_where_there_is_one_rank_its_part_is_the_whole():
    parameters = [torch.ones(3, requires_grad=True)]
    directions = OrthonormalDirections().draw(parameters, 2, seeded(0))
    correction = Correction(parameters, directions, ControlVariate(torch.randn(4, 2, generator=seeded(1)), torch.ones(4), 1.0))
    with correction.withheld(1):
        parameters[0].square().sum().backward()
    correction.apply([1])
    assert torch.allclose(parameters[0].grad, torch.full((3,), 2.0), atol=1e-6)
