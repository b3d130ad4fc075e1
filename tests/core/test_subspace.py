"""Directions learned from gradients: the passes that learn them, the noise they hold, and the arithmetic along them."""

import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import cross_entropy

from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections
from lightning_vamo.core.directions.learned import nystrom, products, updates
from lightning_vamo.core.directions.learned.factored import FactoredDirections
from lightning_vamo.core.directions.learned.factors import random
from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from tests import reference
from tests.support.learning import fed, gradients
from tests.support.points import DTYPES, PRECISION, SHAPES, each, irregular, layouts, noise, similar, zeros
from tests.support.problems import seeded
from tests.support.processes import in_processes
from tests.support.shards import shard

FORMS = [1, 2, None]


MIXED = [(6, 5), (4, 2, 3), (7,), (), (2, 2)]


forms = pytest.mark.parametrize("rank", FORMS, ids=["rank-1", "rank-2", "dense"])


def following(rank=1):
    """The family whose learner follows no other directions than those that are used."""
    return GradientSubspaceDirections(rank, oversampling=0)


def flat(steps):
    return np.stack([reference.flatten(step) for step in steps])


def same_span(u, v):
    one, other = np.linalg.qr(u.T)[0], np.linalg.qr(v.T)[0]
    return float(np.linalg.svd(one.T @ other)[1].min()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize(("rank", "shapes"), [(None, MIXED), (1, [(9,), (), (20,)]), (7, MIXED)])
def test_a_pass_is_a_step_of_block_power_iteration(rank, shapes, missing):
    # Parameters that factors would not make smaller are kept whole: nothing is truncated then.
    family, points = following(rank), zeros(shapes, torch.float64)
    steps = gradients(shapes, 24)
    given = [[None if missing and i == 0 else part for i, part in enumerate(step)] for step in steps]
    steps = [[torch.zeros_like(part) if missing and i == 0 else part for i, part in enumerate(step)] for step in steps]
    u = reference.orthonormal_basis(reference.matrix(family.draw(points, 3, seeded(0)), points))
    learner, generator = family.learner(points, 3, seeded(0)), seeded(1)
    for number in range(3):
        part = slice(8 * number, 8 * number + 8)
        for step in given[part]:
            learner.observe(step)
        u = reference.power_iteration(u, reference.gradient_noise(flat(steps[part])))
        learned = reference.matrix(learner.directions(3, generator), points)
        assert learned * np.sign(np.sum(learned * u, axis=1, keepdims=True)) == pytest.approx(u, abs=1e-9)


def test_undamped_sketches_of_enough_columns_miss_nothing(monkeypatch):
    # Three noise directions, of rank one in each matrix, so that all that is learned is of rank three at most.
    monkeypatch.setattr(nystrom, "DAMPING", 0.0)
    shapes, generator = [(9, 8), (10,), (12, 7)], seeded(5)
    axes = [_outer(shapes, generator) for _ in range(3)]
    weights = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    steps = [[sum(w * axis[i] for w, axis in zip(row, axes, strict=True)) for i in range(3)] for row in weights]
    family, points = following(3), zeros(shapes, torch.float64)
    u = reference.matrix(family.draw(points, 2, seeded(0)), points)
    learned = reference.matrix(fed(family, points, steps, count=2)[1], points)
    assert same_span(learned, reference.power_iteration(u, reference.gradient_noise(flat(steps))))


def _outer(shapes, generator, scale=1.0):
    """A direction that is of rank one in each matrix."""
    parts = []
    for shape in shapes:
        factors = [torch.randn(size, generator=generator, dtype=torch.float64) for size in shape]
        parts.append(scale * (torch.outer(*factors) if len(factors) == 2 else factors[0]))
    return parts


def test_noise_of_rank_one_in_each_matrix_is_found_by_directions_of_rank_one():
    shapes, generator = [(30, 40), (30,), (20, 30)], seeded(5)
    axes = [_outer(shapes, generator, scale) for scale in (4.0, 2.0, 1.0)]
    weights = torch.randn(240, 3, generator=generator, dtype=torch.float64)
    steps = [[sum(w * axis[i] for w, axis in zip(row, axes, strict=True)) for i in range(3)] for row in weights]
    _, directions = fed(following(), zeros(shapes, torch.float64), steps, passes=6)
    u = reference.matrix(directions, zeros(shapes, torch.float64))
    samples = reference.gradient_noise(flat(steps))
    exact = reference.principal_directions(samples, 2)
    assert reference.share_removed(u[:2], samples) > 0.99 * reference.share_removed(exact, samples)


@forms
def test_slopes_are_the_last_gradients_projection(rank):
    points, steps = zeros(MIXED, torch.float64), gradients(MIXED, 24)
    learner, directions = fed(following(rank), points, steps[:12])
    for step in steps[12:]:
        learner.observe([None, *step[1:]])
        expected = directions.project([None, *step[1:]])
        assert learner.slopes.coordinates == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)


@forms
@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_shares_are_those_that_the_directions_hold_of_noise_they_have_not_seen(rank, drift):
    shapes, generator = [(10, 12), (10,), (5, 10)], seeded(5)
    axes = [_outer(shapes, generator, scale) for scale in (4.0, 2.0, 1.0)]
    weights = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    weights += drift * torch.linspace(-1, 1, 400, dtype=torch.float64)[:, None]
    steps = [[sum(w * axis[i] for w, axis in zip(row, axes, strict=True)) for i in range(3)] for row in weights]
    steps = [[part + torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in step] for step in steps]
    points = zeros(shapes, torch.float64)
    learner, directions = fed(following(rank), points, steps[:100], passes=2)
    for step in steps[100:]:
        learner.observe(step)
    u, noise = reference.matrix(directions, points), reference.gradient_noise(flat(steps[100:]))
    learner.directions(3, seeded(1))
    expected = [reference.share_removed(u[: count + 1], noise) for count in range(3)]
    assert 0.15 < expected[0] < expected[2] < 0.95
    errors = [share - true for share, true in zip(learner.shares.tolist(), expected, strict=True)]
    assert -0.05 < min(errors) < max(errors) < 0.01


@pytest.mark.parametrize(("rank", "least"), [(1, 0.85), (None, 0.95)])
def test_directions_learned_while_an_mlp_trains_hold_nearly_as_much_as_the_exact_ones(rank, least):
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float() / 16
    generator = seeded(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    parameters = list(net.parameters())
    learner = following(rank).learner(parameters, 8, generator)
    steps = []
    for epoch in range(5):
        if epoch:
            learned = reference.matrix(learner.directions(8, generator), parameters)
        if epoch == 4:
            exact = reference.principal_directions(reference.gradient_noise(flat(steps)), 8)
        steps = []
        for rows in torch.randperm(len(images), generator=generator).split(16):
            step = torch.autograd.grad(cross_entropy(net(images[rows]), labels[rows]), parameters)
            learner.observe(step)
            steps.append(step)
            with torch.no_grad():
                for parameter, part in zip(parameters, step, strict=True):
                    parameter.sub_(part, alpha=0.1)
    # Held out: these are the gradients of the epoch after the one that both were learned in.
    held_out = reference.gradient_noise(flat(steps))
    removed = reference.share_removed(learned, held_out)
    assert removed >= least * reference.share_removed(exact, held_out)
    assert float(learner.shares[-1]) == pytest.approx(removed, abs=0.15)


def learned_or_not(family, points, learned):
    if not learned:
        return family.draw(points, 4, seeded(2))
    steps = [similar(points, seed) for seed in range(20, 32)]
    return fed(family, points, steps, count=4, passes=2)[1]


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("missing", [(), (0,), (0, 3)], ids=["complete", "first-missing", "two-missing"])
@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@forms
def test_coordinates_are_those_in_an_orthonormal_basis(rank, dtype, layout, missing, learned):
    points = layouts(dtype)[layout]
    directions = learned_or_not(following(rank), points, learned)
    u = reference.matrix(directions, zeros([p.shape for p in points], torch.float64))
    assert np.linalg.norm(u, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    basis = reference.orthonormal_basis(u)
    vectors = [None if i in missing else vector for i, vector in enumerate(similar(points, seed=3))]
    before = reference.flatten(vectors, like=points)
    tolerance = max(PRECISION[dtype], 2e-5)
    coordinates = directions.project(vectors)
    assert coordinates.dtype == torch.promote_types(dtype, torch.float32)
    assert coordinates.double().numpy() == pytest.approx(basis @ before, abs=tolerance)
    slopes = torch.from_numpy(np.stack([u @ before, 2 * u @ before]))
    assert directions.whiten(slopes).numpy() == pytest.approx(np.stack([basis @ before, 2 * basis @ before]), abs=tolerance)

    present = np.concatenate([np.full(point.numel(), i not in missing) for i, point in enumerate(points)])
    step = present * (np.array([0.5, -1.0, 0.0, 2.0]) @ basis)
    moments = directions.subtract_(vectors, torch.tensor([0.5, -1.0, 0.0, 2.0]))
    assert reference.flatten(vectors, like=points) == pytest.approx(before - step, rel=tolerance, abs=tolerance)
    assert moments.dtype == torch.float64
    assert moments.numpy() == pytest.approx([before @ before, before @ step, step @ step], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("layout", ["regular", "irregular"])
@each("dtype", DTYPES)
@forms
def test_move_adds_a_step_along_one_direction_and_leaves_the_origin_alone(rank, dtype, layout):
    origins = layouts(dtype)[layout]
    targets, before = similar(origins, seed=1), [origin.clone() for origin in origins]
    directions = following(rank).draw(origins, 4, seeded(2))
    u = reference.matrix(directions, zeros([p.shape for p in origins], torch.float64))
    for index, distance in ((2, 0.5), (0, -0.25)):
        directions.move(targets, origins, index, distance)
        expected = reference.flatten(origins) + distance * u[index]
        assert reference.flatten(targets) == pytest.approx(expected, rel=PRECISION[dtype], abs=PRECISION[dtype])
        assert all(torch.equal(origin, old) for origin, old in zip(origins, before, strict=True))


def test_rows_of_zeros_change_nothing_but_the_time(monkeypatch):
    points, vectors = zeros([(12, 6), (9, 4)], torch.float64), noise([(12, 6), (9, 4)], torch.float64)
    vectors[0][[0, 1, 2, 3, 5, 6, 8, 9, 10]] = 0
    steps = gradients([(12, 6), (9, 4)], 8)
    for step in steps:
        step[0][[0, 1, 2, 3, 4, 6, 8, 9]] = 0
    results = []
    for many in (1, 100):
        for module in (products, updates):
            monkeypatch.setattr(module, "MANY_ROWS", many)
        _, directions = fed(following(), points, steps)
        changed = [part.clone() for part in vectors]
        moments = directions.subtract_(changed, torch.ones(3))
        results.append([directions.dense(points), directions.project(vectors), moments, *changed])
    torch.testing.assert_close(results[0], results[1])


def test_directions_that_coincide_are_one():
    layout = Layout(zeros([(5, 4), (3,)], torch.float64), 1)
    one = random(layout, 1, seeded(0))
    directions = FactoredDirections(one.followed_by(one))
    vectors = noise([(5, 4), (3,)], torch.float64)
    before = reference.flatten(vectors)
    directions.subtract_(vectors, directions.project(vectors))
    [u, _] = reference.matrix(directions, vectors)
    assert reference.flatten(vectors) == pytest.approx(before - (before @ u) / (u @ u) * u, abs=1e-9)


@pytest.mark.parametrize("learned", [False, True])
def test_dense_directions_are_orthonormal(learned):
    points = irregular()
    u = reference.matrix(learned_or_not(following(None), points, learned), points)
    assert u @ u.T == pytest.approx(np.eye(4), abs=1e-5)


@each("dtype", DTYPES)
@forms
def test_gradients_are_neither_kept_nor_changed(rank, dtype):
    points, steps = zeros(MIXED, dtype), gradients(MIXED, 6, dtype=dtype)
    learner, same = (following(rank).learner(points, 2, seeded(0)) for _ in range(2))
    buffer = [torch.empty_like(part) for part in points]
    for step in steps:
        for part, numbers in zip(buffer, step, strict=True):
            part.copy_(numbers)
        learner.observe(buffer)
        assert all(torch.equal(part, numbers) for part, numbers in zip(buffer, step, strict=True))
        same.observe(step)
    one, other = (each.directions(2, seeded(1)).dense(zeros(MIXED)) for each in (learner, same))
    assert torch.equal(one, other)


@forms
def test_a_learner_is_ready_with_as_many_differences_as_directions(rank):
    learner = following(rank).learner(zeros(MIXED), 3, seeded(0))
    ready = []
    for step in gradients(MIXED, 4, dtype=torch.float32):
        ready.append(learner.ready)
        learner.observe(step)
    assert [*ready, learner.ready] == [False] * 4 + [True]
    assert learner.current is None
    assert learner.directions(3, seeded(1)) is learner.current
    assert learner.ready


@forms
def test_a_pass_that_is_too_short_goes_on(rank):
    points, steps = zeros(MIXED, torch.float64), gradients(MIXED, 10)
    learner, other = (following(rank).learner(points, 3, seeded(0)) for _ in range(2))
    for step in steps[:3]:
        learner.observe(step)
    early = learner.directions(3, seeded(1))
    assert torch.equal(early.dense(points), following(rank).draw(points, 3, seeded(0)).dense(points))
    for step in steps[3:]:
        learner.observe(step)
    for step in steps:
        other.observe(step)
    assert torch.equal(learner.directions(3, seeded(1)).dense(points), other.directions(3, seeded(1)).dense(points))


@forms
def test_a_gradient_that_is_not_finite_is_passed_over(rank):
    points, steps = zeros([(9,), (4,)], torch.float64), gradients([(9,), (4,)], 10)
    family = following(rank)
    u = reference.matrix(family.draw(points, 2, seeded(0)), points)
    broken = [[torch.full_like(part, value) for part in steps[0]] for value in (torch.nan, torch.inf)]
    _, directions = fed(family, points, [broken[0], *steps[:5], broken[1], *steps[5:]], count=2)
    used = np.concatenate([reference.gradient_noise(flat(part)) for part in (steps[:5], steps[5:])])
    assert same_span(reference.matrix(directions, points), reference.power_iteration(u, used))


@forms
def test_without_noise_the_directions_stay(rank):
    points = zeros(MIXED, torch.float64)
    steps = gradients(MIXED, 1) * 6
    learner, directions = fed(following(rank), points, steps)
    start = following(rank).draw(points, 3, seeded(0)).dense(points)
    torch.testing.assert_close(directions.dense(points), start, rtol=0, atol=1e-12)
    assert learner.shares is None


def test_a_matrix_without_gradients_is_learned_about_when_it_gets_some():
    points, steps = zeros(MIXED, torch.float64), gradients(MIXED, 40)
    first = [[None, *step[1:]] for step in steps]
    learner, directions = fed(following(), points, first, passes=2)
    assert np.abs(reference.matrix(directions, points)[:, :30]).max() < 1e-5
    for step in steps:
        learner.observe([step[0], None, None, None, None])
    found = reference.matrix(learner.directions(3, seeded(1)), points)[:, :30]
    assert np.linalg.norm(found, axis=1).min() > 0.9


@forms
def test_fewer_directions_are_the_leading_ones(rank):
    points, steps = zeros(MIXED, torch.float64), gradients(MIXED, 24)
    fewer, more = (following(rank).learner(points, 4, seeded(0)) for _ in range(2))
    for learner in (fewer, more):
        for step in steps[:12]:
            learner.observe(step)
        learner.directions(4, seeded(1))
        for step in steps[12:]:
            learner.observe(step)
    two, four = fewer.directions(2, seeded(1)), more.directions(4, seeded(1))
    assert two.count == 2
    torch.testing.assert_close(two.dense(points), four.dense(points)[:2], rtol=0, atol=1e-12)
    assert torch.equal(fewer.shares, more.shares[:2])


@forms
def test_more_directions_are_filled_up_with_random_ones_which_are_learned(rank):
    points, steps = zeros(MIXED, torch.float64), gradients(MIXED, 40)
    learner, directions = fed(following(rank), points, steps[:20], count=2, passes=2)
    two, shares = directions.dense(points), learner.shares
    for step in steps[20:]:
        learner.observe(step)
    five = learner.directions(5, seeded(2))
    u = five.dense(points)
    assert u.norm(dim=1).tolist() == pytest.approx([1] * 5, abs=1e-9)
    assert len(learner.shares) == 5
    assert learner.shares[1:].tolist() == [float(learner.shares[1])] * 4
    assert len(shares) == len(two) == 2
    held_out = reference.gradient_noise(flat(steps[20:]))
    for step in steps[20:]:
        learner.observe(step)
    learned = learner.directions(5, seeded(2)).dense(points).numpy()
    assert reference.share_removed(learned, held_out) > reference.share_removed(u.numpy()[:2], held_out) + 0.05


@pytest.mark.parametrize("position", [0, 1, 7, 10, 13])
@pytest.mark.parametrize("given", [False, True])
@forms
def test_a_resumed_learner_goes_on_to_the_bit(rank, position, given):
    points, steps = zeros(MIXED), gradients(MIXED, 20, dtype=torch.float32)
    family = following(rank)
    learner = family.learner(points, 3, seeded(0))
    for step in [*steps[:6]] if given else []:
        learner.observe(step)
    if given:
        learner.directions(3, seeded(1))
    for step in steps[:position]:
        learner.observe(step)
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed = family.learner(points, 5, seeded(9))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert (resumed.current is None) == (learner.current is None)
    for again in range(2):
        for step in steps[position : position + 6]:
            learner.observe(step)
            resumed.observe(step)
        if learner.current is not None:
            one, other = similar(points, seed=5), similar(points, seed=5)
            moments = [each.current.subtract_(v, torch.ones(3)) for each, v in ((learner, one), (resumed, other))]
            assert torch.equal(*moments)
            assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
        one, other = (each.directions(3, seeded(again)).dense(points) for each in (learner, resumed))
        assert torch.equal(one, other)
        assert (learner.shares is None) == (resumed.shares is None)
        assert learner.shares is None or torch.equal(learner.shares, resumed.shares)


@pytest.mark.parametrize("rank", [1, None])
def test_the_state_of_other_parameters_or_another_rank_is_refused(rank):
    learner = following(rank).learner(zeros([(8, 8)]), 2, seeded(0))
    for other in (
        following(rank).learner(zeros([(8, 7)]), 2, seeded(0)),
        *[following(2 if rank == 1 else 1).learner(zeros([(8, 8)]), 2, seeded(0))],
    ):
        with pytest.raises(InvalidArgumentError, match=f"rank {rank}.*rank={rank}"):
            other.load_state_dict(learner.state_dict())


def numbers_held(learner):
    state = learner.state_dict()
    return sum(part.numel() for key in ("directions", "sums", "last") for part in state[key])


def test_the_dense_form_holds_at_most_the_directions_their_sums_and_one_gradient():
    points = zeros([(30, 20), (30,)])
    learner, _ = fed(following(None), points, [similar(points, seed) for seed in range(12)], passes=2)
    learner.observe(points)
    assert numbers_held(learner) == (2 * 3 + 1) * 630


def test_the_factored_form_holds_a_few_rows_and_columns():
    points = zeros([(300, 200), (300,)])
    learner, _ = fed(following(), points, [similar(points, seed) for seed in range(12)], passes=2)
    learner.observe(points)
    assert numbers_held(learner) == 3 * 3 * 500 + (2 * 3 + 1) * 300


def _learn_on_shards(folder, rank):
    dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
        shapes = [(5, 4), (1,), (7, 2, 3), (3, 1)]
        points = [shard(point, mesh) for point in zeros(shapes, torch.float64)]
        steps = [[shard(part, mesh) for part in step] for step in gradients(shapes, 16)]
        learner, directions = fed(following(rank), points, steps, passes=2)
        vectors = [shard(part, mesh) for part in noise(shapes, torch.float64)]
        coordinates = directions.project(vectors)
        moments = directions.subtract_(vectors, torch.ones(3))
        return {
            "coordinates": coordinates,
            "moments": moments,
            "shares": learner.shares,
            "rest": [local(vector) for vector in vectors],
            "directions": [_part(directions, points, index) for index in range(3)],
        }
    finally:
        dist.destroy_process_group()


def _part(directions, points, index):
    end = [torch.zeros_like(local(point)) for point in points]
    directions.move(end, [torch.zeros_like(local(point)) for point in points], index, 1.0)
    return end


@forms
def test_shards_together_learn_what_one_process_does(rank, tmp_path):
    shapes = [(5, 4), (1,), (7, 2, 3), (3, 1)]
    points, vectors = zeros(shapes, torch.float64), noise(shapes, torch.float64)
    start = following(rank).draw(points, 3, seeded(0))
    learner, directions = fed(following(rank), points, gradients(shapes, 16), passes=2)
    assert not torch.allclose(start.dense(points), directions.dense(points))
    coordinates, moments = directions.project(vectors), directions.subtract_(vectors, torch.ones(3))
    ranks = in_processes(_learn_on_shards, tmp_path, rank)
    close = {"rtol": 1e-7, "atol": 1e-8}
    for index in range(3):
        for position, whole in enumerate(_part(directions, points, index)):
            torch.testing.assert_close(torch.cat([each["directions"][index][position] for each in ranks]), whole, **close)
    for position, vector in enumerate(vectors):
        torch.testing.assert_close(torch.cat([each["rest"][position] for each in ranks]), vector, **close)
    torch.testing.assert_close(sum(each["moments"] for each in ranks), moments, **close)
    for each_rank in ranks:
        assert torch.equal(each_rank["coordinates"], ranks[0]["coordinates"])
        torch.testing.assert_close(each_rank["coordinates"], coordinates, **close)
        torch.testing.assert_close(each_rank["shares"], learner.shares, **close)


def test_more_dense_directions_than_parameters_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"25 orthonormal .* 24"):
        following(None).draw(zeros(SHAPES), 25, seeded(0))


def test_families_that_do_not_learn_have_no_learner():
    assert not SphereDirections.learns
    assert GradientSubspaceDirections.learns
    with pytest.raises(UnsupportedError, match=r"SphereDirections does not learn .* GradientSubspaceDirections"):
        SphereDirections().learner(zeros(SHAPES), 1, seeded(0))
    assert torch.equal(SphereDirections().draw(zeros(SHAPES), 2, seeded(0)).whiten(torch.ones(2)), torch.ones(2))


@forms
def test_more_directions_than_are_given_are_followed_and_kept(rank):
    shapes = [(10, 12), (10,), (5, 10)]
    points, steps = zeros(shapes, torch.float64), gradients(shapes, 40)
    family = GradientSubspaceDirections(rank, oversampling=2)
    learner, directions = fed(family, points, steps[:20], count=2)
    assert directions.count == 2
    assert learner.leading(2).dense(points) == pytest.approx(directions.dense(points).numpy())
    other = family.learner(points, 1, seeded(9))
    other.load_state_dict(learner.state_dict())
    for one in (learner, other):
        for step in steps[20:]:
            one.observe(step)
    first, second = (one.directions(2, seeded(3)).dense(points) for one in (learner, other))
    assert torch.equal(first, second)


@forms
@pytest.mark.parametrize(("count", "more"), [(1, 3), (3, 1), (4, 0), (5, 0)])
def test_by_default_four_directions_are_followed_at_least(rank, count, more):
    shapes = [(10, 12), (10,), (5, 10)]
    points, steps = zeros(shapes, torch.float64), gradients(shapes, 20)
    by_default, told = (
        fed(family, points, steps, count=count)[1]
        for family in (GradientSubspaceDirections(rank), GradientSubspaceDirections(rank, oversampling=more))
    )
    assert torch.equal(by_default.dense(points), told.dense(points))
    assert by_default.count == count


def test_no_more_directions_are_followed_than_there_are_dimensions():
    points, steps = zeros([(2,)], torch.float64), gradients([(2,)], 12)
    _, directions = fed(GradientSubspaceDirections(None), points, steps, count=1)
    assert directions.dense(points).norm() == pytest.approx(1)


@pytest.mark.parametrize(("dimension", "is_dense"), [(5, False), (63, False), (64, True), (2**14, True), (2**14 + 1, False)])
def test_small_models_have_whole_directions_by_default_of_the_callback(dimension, is_dense):
    directions = GradientSubspaceDirections(rank="auto").draw(zeros([(dimension,)]), 8, seeded(0))
    assert isinstance(directions, FactoredDirections) is not is_dense
    assert directions.count == 8


@forms
def test_shares_within_a_pass_are_those_at_its_end(rank):
    steps, generator = gradients(MIXED, 60), seeded(1)
    learner, _ = fed(following(rank), zeros(MIXED, torch.float64), steps[:20])
    for step in steps[20:22]:  # fewer differences than directions
        learner.observe(step)
    assert learner.shares_so_far() is None
    for step in steps[22:40]:
        learner.observe(step)
    so_far = learner.shares_so_far()
    learner.directions(3, generator)
    assert torch.equal(so_far, learner.shares)
    assert torch.equal(learner.shares_so_far(), learner.shares)


@pytest.mark.parametrize(
    "arguments",
    [{name: value} for name in ("rank", "warmup_batches", "oversampling") for value in (2.5, float("nan"), -1, True, "all")]
    + [{"rank": 0}],
    ids=str,
)
def test_numbers_that_are_not_whole_are_refused(arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(InvalidArgumentError, match=rf"`{name}` must be .*whole number >= \d, got {value!r}"):
        GradientSubspaceDirections(**arguments)


def test_more_outer_products_than_weights_are_refused():
    with pytest.raises(InvalidArgumentError, match=r"`rank` must be at most 91, the number of weights, got 1000000"):
        GradientSubspaceDirections(rank=10**6).check_count(4, 91)
