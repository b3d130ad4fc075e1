"""Random directions have the moments of their family, depend on their generator alone, and agree with a dense matrix."""

import functools
import io
import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    OrthonormalDirections,
    RademacherDirections,
    SphereDirections,
)
from lightning_vamo.core.directions.random import stored as stored_rows
from lightning_vamo.core.directions.random import streams
from lightning_vamo.errors import InvalidArgumentError, VAMOError
from tests import reference
from tests.support.points import ALL, DTYPES, PRECISION, RANDOM, SHAPES, each, irregular, layouts, name, noise, similar, zeros
from tests.support.problems import seeded

UNIT = [SphereDirections(), RademacherDirections(), OrthonormalDirections(), CoordinateDirections()]


ORTHONORMAL = [OrthonormalDirections(), CoordinateDirections()]


DIMENSION = 24


def many(family, shapes, count, draws, seed=0):
    """Shape (draws, count, d): the directions of many draws from one generator."""
    generator, points = seeded(seed), zeros(shapes)
    return torch.stack([family.draw(points, count, generator).dense(points) for _ in range(draws)]).double()


def assert_mean(samples, expected, most):
    """The mean over the first dimension is as expected within five standard errors, and these are at most `most`."""
    error = samples.std(dim=0) / len(samples) ** 0.5
    assert float(error.max()) <= most
    deviation = (samples.mean(dim=0) - expected).abs()
    assert bool((deviation <= 5 * error + 1e-7).all()), (deviation, error)


@each("dtype", DTYPES)
@each("family", UNIT)
def test_directions_have_unit_norm_over_all_parameters_together(family, dtype):
    u = reference.matrix(family.draw(zeros(SHAPES, dtype), 8, seeded(0)), zeros(SHAPES, dtype))
    assert u.shape == (8, DIMENSION)
    assert np.linalg.norm(u, axis=1) == pytest.approx(np.ones(8), abs=PRECISION[dtype])


@pytest.mark.parametrize("family", [SphereDirections(), OrthonormalDirections()], ids=name)
def test_the_share_of_the_norm_in_one_parameter_is_that_of_a_point_on_the_joint_sphere(family):
    # A Beta(a/2, b/2) variable; normalised tensor by tensor it would be the same in every direction.
    a, b = 6, 4
    share = many(family, [(2, 3), (4,)], count=1, draws=2000)[:, 0, :a].square().sum(dim=1)
    assert_mean(share, a / (a + b), most=0.01)
    variance = 2 * a * b / ((a + b) ** 2 * (a + b + 2))
    assert_mean((share - a / (a + b)).square(), variance, most=0.002)


def test_gaussian_directions_have_unit_mean_square_norm():
    squares = many(GaussianDirections(), SHAPES, count=20, draws=200).flatten(0, 1).square().sum(dim=1)
    assert_mean(squares, 1.0, most=0.01)
    assert_mean((squares - 1).square(), 2 / DIMENSION, most=0.004)


@each("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("count", "shapes"), [(1, [(1,)]), (8, SHAPES), (60, [(50,), (5, 2)]), (300, [(290,), (), (3, 3)])])
@each("family", ORTHONORMAL)
def test_orthonormal_directions_are_orthonormal_up_to_as_many_as_there_are_parameters(family, count, shapes, dtype):
    points = zeros(shapes, dtype)
    u = family.draw(points, count, seeded(1)).dense(points).double()
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-8}[dtype]
    assert torch.allclose(u @ u.T, torch.eye(count, dtype=torch.float64), atol=tolerance, rtol=0)
    if count == u.shape[1]:
        assert torch.allclose(u.T @ u, torch.eye(count, dtype=torch.float64), atol=tolerance, rtol=0)


@each("family", ORTHONORMAL)
def test_orthonormal_directions_are_orthonormal_in_bfloat16_to_its_precision(family):
    points = zeros([(40, 10)], torch.bfloat16)
    u = family.draw(points, 16, seeded(1)).dense(points).double()
    assert torch.allclose(u @ u.T, torch.eye(16, dtype=torch.float64), atol=5e-3, rtol=0)


def test_independent_directions_are_not_orthogonal():
    u = many(SphereDirections(), [(30,)], count=30, draws=1)[0]
    assert float((u @ u.T - torch.eye(30)).abs().max()) > 0.2


@functools.cache
def pairs(cls):
    """Shape (draws, 2, 10): the directions that several tests look at."""
    return many(cls(), [(2, 3), (), (1, 3)], count=2, draws=1500)


@pytest.mark.parametrize("cls", [*RANDOM, CoordinateDirections], ids=lambda cls: cls.__name__)
def test_the_mean_outer_product_is_the_identity_over_d(cls):
    u = pairs(cls)
    outer = torch.einsum("nqi,nqj->nij", u, u) / 2
    assert_mean(outer, torch.eye(10) / 10, most=0.01)


@pytest.mark.parametrize("cls", RANDOM, ids=lambda cls: cls.__name__)
def test_directions_have_mean_zero(cls):
    assert_mean(pairs(cls)[:, 1], 0.0, most=0.01)


@pytest.mark.parametrize(
    ("family", "fourth", "most"),
    [(SphereDirections(), 3 / (10 * 12), 2e-3), (GaussianDirections(), 3 / 100, 2e-3), (RademacherDirections(), 1 / 100, 1e-6)],
    ids=name,
)
def test_coordinates_have_the_familys_second_and_fourth_moments(family, fourth, most):
    u = many(family, [(2, 3), (4,)], count=20, draws=200).flatten(0, 1)
    assert_mean(u.square(), 0.1, most=0.01)
    assert_mean(u.pow(4), fourth, most)


@pytest.mark.parametrize(
    ("family", "count"), [(SphereDirections(), 1), (OrthonormalDirections(), 1), (OrthonormalDirections(), 3)]
)
def test_on_the_sphere_in_three_dimensions_every_coordinate_is_uniform(family, count):
    # Archimedes; the Kolmogorov-Smirnov distance from the uniform law on [-1, 1], critical value for p = 0.001.
    n = 2000
    last = many(family, [(2,), ()], count, draws=n)[:, -1]
    assert last.shape == (n, 3)
    for coordinate in last.T:
        law = (coordinate.sort().values + 1) / 2
        grid = torch.arange(n + 1) / n
        distance = max((grid[1:] - law).abs().max(), (law - grid[:-1]).abs().max())
        assert float(distance) < 1.95 / n**0.5


def test_orthonormal_directions_span_a_uniformly_random_subspace():
    # The share of a fixed vector in the span is a Beta(q/2, (d-q)/2) variable, whatever the vector.
    d, q = 10, 4
    u = many(OrthonormalDirections(), [(2, 3), (4,)], count=q, draws=500)
    for vector in (torch.eye(d, dtype=torch.float64)[7], torch.full((d,), d**-0.5, dtype=torch.float64)):
        share = (u @ vector).square().sum(dim=1)
        assert_mean(share, q / d, most=0.01)
        assert_mean(share.square(), q * (q + 2) / (d * (d + 2)), most=0.01)


def test_rademacher_directions_are_balanced_independent_signs():
    d, n = DIMENSION, 3000
    u = many(RademacherDirections(), SHAPES, count=20, draws=n // 20).flatten(0, 1)
    signs = (u * d**0.5).round()
    assert torch.allclose(u, signs / d**0.5, atol=1e-7)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    positive = (signs > 0).double()
    assert_mean(positive.mean(dim=1), 0.5, most=0.01)
    assert_mean((positive.sum(dim=1) - d / 2).square(), d / 4, most=0.3)  # a binomial variable's variance
    assert_mean(signs[:, 1:] * signs[:, :-1], 0.0, most=0.02)  # from coordinate to coordinate
    assert_mean(signs[1:] * signs[:-1], 0.0, most=0.02)  # from direction to direction


def test_coordinates_are_chosen_uniformly_without_repetition():
    n = 3000
    u = many(CoordinateDirections(), [(2,), (0,), (), (1, 2)], count=2, draws=n)
    assert bool((u.sum(dim=2) == 1).all())
    assert bool(((u == 0) | (u == 1)).all())
    assert bool((u.sum(dim=1) <= 1).all())
    pairs = [tuple(sorted(draw.argmax(dim=1).tolist())) for draw in u]
    counts = [pairs.count(pair) for pair in itertools.combinations(range(5), 2)]
    assert sum(counts) == n
    assert sum((count - n / 10) ** 2 / (n / 10) for count in counts) < 27.88  # chi-square, 9 degrees of freedom, p = 0.001


def test_all_coordinates_are_each_chosen_once():
    points = zeros(SHAPES)
    u = CoordinateDirections().draw(points, DIMENSION, seeded(3)).dense(points)
    assert torch.equal(u.sum(dim=0), torch.ones(DIMENSION))
    assert torch.equal(u.sum(dim=1), torch.ones(DIMENSION))


@each("family", ALL)
def test_a_draw_is_a_function_of_the_generator(family):
    points, generator = zeros(SHAPES), seeded(5)
    first, second = (family.draw(points, 3, generator).dense(points) for _ in range(2))
    again = family.draw(points, 3, seeded(5)).dense(points)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, family.draw(points, 3, seeded(6)).dense(points))


@each("family", ALL)
def test_no_global_random_state_is_touched(family):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    points = zeros(SHAPES)
    directions = family.draw(points, 3, seeded(5))
    directions.dense(points)
    directions.project(points)
    directions.subtract_(points, torch.ones(3))
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()


@each("family", ALL)
def test_directions_do_not_depend_on_global_random_state_or_on_what_was_done_with_them(family):
    points = noise(SHAPES)
    directions = family.draw(points, 3, seeded(5))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = directions.dense(points)
        torch.manual_seed(2)
        directions.project(points)
        directions.subtract_(points, torch.ones(3))
        assert torch.equal(first, directions.dense(points))


@each("family", ALL)
def test_only_shapes_and_types_are_read_from_the_parameters(family):
    points = noise(SHAPES)
    before = [point.clone() for point in points]
    u = family.draw(points, 3, seeded(5)).dense(points)
    assert torch.equal(u, family.draw(zeros(SHAPES), 3, seeded(5)).dense(points))
    assert all(torch.equal(point, old) for point, old in zip(points, before, strict=True))


@each("family", ALL)
def test_a_family_serves_any_number_of_draws(family):
    small, large = zeros([(4,)]), zeros(SHAPES)
    first, second = family.draw(small, 2, seeded(1)), family.draw(large, 3, seeded(2))
    assert (first.count, first.dimension, second.count, second.dimension) == (2, 4, 3, DIMENSION)
    assert torch.equal(first.dense(small), family.draw(small, 2, seeded(1)).dense(small))


@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@each("family", ALL)
def test_move_adds_a_step_along_one_direction_and_leaves_the_origin_alone(family, dtype, layout):
    origins = layouts(dtype)[layout]
    targets, before = similar(origins, seed=1), [origin.clone() for origin in origins]
    strides = [target.stride() for target in targets]
    directions = family.draw(origins, 4, seeded(2))
    u = reference.matrix(directions, origins)
    for index, distance in ((2, 0.5), (0, -0.25)):
        directions.move(targets, origins, index, distance)
        expected = reference.flatten(origins) + distance * u[index]
        assert reference.flatten(targets) == pytest.approx(expected, rel=PRECISION[dtype], abs=PRECISION[dtype])
        assert all(torch.equal(origin, old) for origin, old in zip(origins, before, strict=True))
    assert [target.stride() for target in targets] == strides


@pytest.mark.parametrize("missing", [(), (0,), (0, 3)], ids=["complete", "first-missing", "two-missing"])
@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@each("family", ALL)
def test_project_gives_the_inner_products_with_the_dense_matrix(family, dtype, layout, missing):
    points = layouts(dtype)[layout]
    directions = family.draw(points, 4, seeded(2))
    vectors = [None if i in missing else vector for i, vector in enumerate(similar(points, seed=3))]
    before = [None if vector is None else vector.clone() for vector in vectors]
    coefficients = directions.project(vectors)
    assert coefficients.shape == (4,)
    assert coefficients.dtype == torch.promote_types(dtype, torch.float32)
    expected = reference.matrix(directions, points) @ reference.flatten(vectors, like=points)
    assert coefficients.double().numpy() == pytest.approx(expected, rel=PRECISION[dtype], abs=PRECISION[dtype])
    for vector, old in zip(vectors, before, strict=True):
        assert (vector is None and old is None) or torch.equal(vector, old)


@pytest.mark.parametrize("missing", [(), (0,), (0, 3)], ids=["complete", "first-missing", "two-missing"])
@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@each("family", ALL)
def test_subtract_takes_out_the_combination_given_by_the_dense_matrix(family, dtype, layout, missing):
    points = layouts(dtype)[layout]
    directions = family.draw(points, 4, seeded(2))
    vectors = [None if i in missing else vector for i, vector in enumerate(similar(points, seed=3))]
    coefficients = torch.tensor([0.5, -1.0, 0.0, 2.0])
    expected = reference.flatten(vectors, like=points)
    for c, row in zip(coefficients.tolist(), reference.matrix(directions, points), strict=True):
        expected = expected - c * row
    present = np.concatenate([np.full(point.numel(), i not in missing) for i, point in enumerate(points)])
    directions.subtract_(vectors, coefficients)
    result = reference.flatten(vectors, like=points)
    assert result[present] == pytest.approx(expected[present], rel=PRECISION[dtype], abs=PRECISION[dtype])
    assert all(vectors[i] is None for i in missing)
    assert coefficients.tolist() == [0.5, -1.0, 0.0, 2.0]


@each("family", ALL)
def test_parameters_of_several_types_take_part_together(family):
    points = [torch.zeros(3, 4, dtype=torch.float32), torch.zeros(5, dtype=torch.bfloat16), torch.zeros(7, dtype=torch.float64)]
    directions = family.draw(points, 4, seeded(2))
    u = reference.matrix(directions, points)
    assert u.shape == (4, 24)
    vectors = similar(points, seed=3)
    flat = reference.flatten(vectors)
    assert directions.project(vectors).double().numpy() == pytest.approx(u @ flat, abs=3e-2)
    directions.subtract_(vectors, torch.full((4,), 0.5))
    assert reference.flatten(vectors) == pytest.approx(flat - 0.5 * u.sum(axis=0), abs=3e-2)
    assert [vector.dtype for vector in vectors] == [torch.float32, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@pytest.mark.parametrize("family", RANDOM)
def test_stored_and_seeded_directions_are_the_same_to_the_bit(family, dtype, layout):
    points = layouts(dtype)[layout]
    stored, drawn = (family(storage).draw(points, 5, seeded(9)) for storage in ("stored", "seeded"))
    assert (stored.count, stored.dimension) == (drawn.count, drawn.dimension)
    assert torch.equal(stored.dense(points), drawn.dense(points))
    moved, regenerated = similar(points, seed=1), similar(points, seed=2)
    stored.move(moved, points, 3, 0.1)
    drawn.move(regenerated, points, 3, 0.1)
    assert all(torch.equal(one, other) for one, other in zip(moved, regenerated, strict=True))


@pytest.mark.parametrize("family", RANDOM)
def test_stored_and_seeded_directions_are_the_same_with_as_many_as_there_are_parameters(family):
    points = zeros([(20, 2), (20,)])
    stored, drawn = (family(storage).draw(points, 60, seeded(9)) for storage in ("stored", "seeded"))
    assert torch.equal(stored.dense(points), drawn.dense(points))


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4),
    count=st.integers(1, 6),
    missing=st.sets(st.integers(0, 3)),
    chunk=st.integers(1, 20),
    family=st.sampled_from(RANDOM),
)
def test_both_storages_agree_with_the_dense_matrix_whatever_the_shapes(shapes, count, missing, chunk, family):
    points = noise(shapes, torch.float64)
    dimension = sum(point.numel() for point in points)
    if dimension == 0 or (family.orthonormal and count > dimension):
        with pytest.raises(InvalidArgumentError):
            family().draw(points, count, seeded(0))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        patch.setattr(stored_rows, "BLOCK", chunk)
        stored, drawn = (family(storage).draw(points, count, seeded(0)) for storage in ("stored", "seeded"))
        u = reference.matrix(stored, points)
        assert np.array_equal(u, reference.matrix(drawn, points))
        for directions in (stored, drawn):
            vectors = [None if i in missing else vector for i, vector in enumerate(similar(points, seed=3))]
            flat = reference.flatten(vectors, like=points)
            coefficients = directions.project(vectors)
            assert coefficients.numpy() == pytest.approx(u @ flat, abs=1e-9)
            directions.subtract_(vectors, coefficients)
            present = np.concatenate([np.full(point.numel(), i not in missing) for i, point in enumerate(points)])
            expected = flat - coefficients.numpy() @ u
            assert reference.flatten(vectors, like=points)[present] == pytest.approx(expected[present], abs=1e-9)


@pytest.mark.parametrize("chunk", [1, 5, 12, 24, 25])
@each("family", ALL)
def test_parameters_longer_than_a_chunk_are_treated_like_short_ones(family, chunk, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    monkeypatch.setattr(stored_rows, "BLOCK", chunk)
    points = irregular()
    directions = family.draw(points, 3, seeded(4))
    u = reference.matrix(directions, points)
    assert u.shape == (3, 48)
    if isinstance(family, tuple(type(unit) for unit in UNIT)):
        assert np.linalg.norm(u, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    if family.orthonormal:
        assert u @ u.T == pytest.approx(np.eye(3), abs=1e-6)
    targets = similar(points, seed=1)
    directions.move(targets, points, 1, 0.5)
    assert reference.flatten(targets) == pytest.approx(reference.flatten(points) + 0.5 * u[1], abs=1e-6)
    for missing in (None, 1):
        vectors = [None if i == missing else vector for i, vector in enumerate(similar(points, seed=3))]
        present = np.concatenate([np.full(point.numel(), i != missing) for i, point in enumerate(points)])
        flat = reference.flatten(vectors, like=points)
        assert directions.project(vectors).numpy() == pytest.approx(u @ flat, abs=1e-5)
        directions.subtract_(vectors, torch.tensor([1.0, -2.0, 0.5]))
        expected = flat - np.array([1.0, -2.0, 0.5]) @ u
        assert reference.flatten(vectors, like=points)[present] == pytest.approx(expected[present], abs=1e-5)


def test_chunks_of_a_direction_differ():
    numbers = streams.CHUNK + 1000
    u = SphereDirections("seeded").draw([torch.zeros(numbers)], 1, seeded(4)).dense([torch.zeros(numbers)])[0]
    assert float(u.double().norm()) == pytest.approx(1, abs=1e-6)
    assert abs(float(u[:1000] @ u[-1000:])) < 5 * 1000**0.5 / numbers


@pytest.mark.parametrize("family", RANDOM)
def test_seeded_directions_take_no_memory(family):
    sizes = {}
    for storage in ("stored", "seeded"):
        file = io.BytesIO()
        torch.save(family(storage).draw([torch.zeros(100, 100), torch.zeros(100)], 4, seeded(0)), file)
        sizes[storage] = file.tell()
    assert sizes["stored"] > 4 * 10_100 * 4
    assert sizes["seeded"] < 5_000


@each("family", ALL)
def test_a_modules_parameters_are_accepted_as_they_are(family):
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(4, 2))
    parameters = list(module.parameters())
    directions = family.draw(parameters, 2, seeded(0))
    assert directions.dimension == sum(p.numel() for p in parameters)
    sum(p.square().sum() for p in parameters).backward()
    gradients = [p.grad for p in parameters]
    expected = reference.matrix(directions, parameters) @ reference.flatten(gradients)
    assert directions.project(gradients).numpy() == pytest.approx(expected, abs=1e-5)
    assert not directions.dense(parameters).requires_grad


@each("family", ALL)
@pytest.mark.parametrize("count", [0, -3])
def test_fewer_than_one_direction_is_refused(family, count):
    with pytest.raises(InvalidArgumentError, match=f"`count`, the number of directions, must be at least 1, got {count}"):
        family.draw(zeros(SHAPES), count, seeded(0))


@each("family", [OrthonormalDirections(), OrthonormalDirections("seeded"), CoordinateDirections()])
def test_more_orthonormal_directions_than_parameters_are_refused(family):
    with pytest.raises(InvalidArgumentError, match=r"25 orthonormal .* 24 .* use at most 24 .* SphereDirections"):
        family.draw(zeros(SHAPES), 25, seeded(0))
    family.check_count(24, 24)


@each("family", [family() for family in RANDOM if not family.orthonormal])
def test_independent_families_draw_more_directions_than_parameters(family):
    assert family.draw(zeros([(2,)]), 5, seeded(0)).dense(zeros([(2,)])).shape == (5, 2)


@each("family", ALL)
@pytest.mark.parametrize("parameters", [[], [torch.zeros(0, 3)]], ids=["none", "empty"])
def test_having_no_parameters_is_refused(family, parameters):
    with pytest.raises(InvalidArgumentError, match=r"`parameters` .* at least one trainable parameter"):
        family.draw(parameters, 1, seeded(0))


@pytest.mark.parametrize("family", RANDOM)
def test_an_unknown_storage_is_refused(family):
    with pytest.raises(InvalidArgumentError, match=r"`storage` must be 'stored' or 'seeded', got 'disk'"):
        family("disk")


def test_an_invalid_argument_is_a_value_error_and_an_error_of_this_package():
    with pytest.raises(ValueError, match="`count`"):
        SphereDirections().check_count(0, 1)
    with pytest.raises(VAMOError, match="`count`"):
        SphereDirections().check_count(0, 1)


@pytest.mark.parametrize("storage", ["stored", "seeded"])
def test_orthonormal_directions_project_and_subtract_exactly_also_near_as_many_as_parameters(storage):
    parameters = [torch.zeros(200)]
    directions = OrthonormalDirections(storage).draw(parameters, 200, torch.Generator().manual_seed(0))
    u = directions.dense(parameters).double()
    vector = torch.randn(200, generator=torch.Generator().manual_seed(1))
    coefficients = torch.randn(200, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(directions.project([vector]).double(), u @ vector.double(), atol=2e-5)
    expected = vector.double() - coefficients.double() @ u
    directions.subtract_([vector], coefficients)
    assert torch.allclose(vector.double(), expected, atol=2e-5)


def test_in_bfloat16_both_storages_round_a_combination_once():
    parameters = [torch.zeros(4000, dtype=torch.bfloat16)]
    coefficients = torch.randn(64, generator=torch.Generator().manual_seed(2))
    errors = {}
    for storage in ("stored", "seeded"):
        directions = SphereDirections(storage).draw(parameters, 64, torch.Generator().manual_seed(0))
        vector = torch.ones(4000, dtype=torch.bfloat16)
        directions.subtract_([vector], coefficients)
        exact = 1 - coefficients.double() @ directions.dense(parameters).double()
        errors[storage] = float((vector.double() - exact).norm() / (1 - exact).norm())
    assert errors["seeded"] < 1.2 * errors["stored"]


@pytest.mark.parametrize("family", [SphereDirections(), SphereDirections("seeded"), CoordinateDirections()])
def test_nothing_but_missing_vectors_gives_zeros(family):
    directions = family.draw([torch.zeros(3)], 2, torch.Generator().manual_seed(0))
    assert directions.project([None]).tolist() == [0, 0]


@pytest.mark.parametrize("family", [SphereDirections(), SphereDirections("seeded"), CoordinateDirections()])
def test_parameters_that_need_gradients_can_be_moved(family):
    parameters = [torch.nn.Parameter(torch.zeros(3))]
    directions = family.draw(parameters, 1, torch.Generator().manual_seed(0))
    directions.move(parameters, [torch.ones(3)], 0, 2.0)
    assert float((parameters[0].detach() - 1).norm()) == pytest.approx(2, rel=1e-6)


def test_the_default_device_has_no_say():
    parameters = [torch.zeros(5)]
    expected = OrthonormalDirections().draw(parameters, 2, torch.Generator().manual_seed(0)).dense(parameters)
    with torch.device("meta"):
        drawn = OrthonormalDirections().draw(parameters, 2, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.dense(parameters), expected)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_only_real_floating_point_parameters_have_directions(dtype):
    with pytest.raises(InvalidArgumentError, match="must be real floating-point tensors"):
        SphereDirections().draw([torch.zeros(3, dtype=dtype)], 1, torch.Generator())
