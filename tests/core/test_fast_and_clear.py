"""The fast forms of a step, on a CPU, on a pretended GPU and on shards, compared with the clear ones of the reference."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.sharding import local
from tests import reference
from tests.support.pretend_gpu import numbers, pretended_gpu
from tests.support.problems import seeded
from tests.support.shards import on_ranks, shard

SHAPE = st.one_of(
    st.tuples(st.integers(1, 6)),
    st.tuples(st.integers(3, 9), st.integers(3, 9)),
    st.tuples(st.integers(3, 6), st.integers(1, 3), st.integers(2, 3), st.integers(1, 2)),
)
FAMILIES = [GradientSubspaceDirections(), GradientSubspaceDirections(rank=2), GradientSubspaceDirections(rank=None)]


@st.composite
def steps(draw):
    """Shapes, which gradients are there, and how the step accumulates and scales them."""
    shapes = [(9, 8), *draw(st.lists(SHAPE, min_size=1, max_size=4))]
    present = draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)).filter(any))
    rows = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    accumulated = len(rows) + draw(st.integers(0, 1))
    return shapes, present, rows, accumulated, draw(st.sampled_from([None, 2.0**10])), draw(st.integers(0, 2**20))


def drawn(shapes, seed, counted):
    """Numbers for a step: gradients to learn from, the gradient, and a table."""
    generator = seeded(seed)
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(5)]
    return gradients, torch.randn(4, counted, generator=generator), torch.rand(4, generator=generator) + 0.5


def learned(family, points, gradients, count):
    """Directions after a pass, and the learner, which has seen the last of the gradients with them."""
    learner = family.learner(points, count, seeded(1))
    for gradient in gradients[:-1]:
        learner.observe(gradient)
    directions = learner.directions(count, seeded(2))
    learner.observe(gradients[-1])
    return learner, directions


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).double().numpy()


def check(found, expected, like):
    scale = max(1.0, np.abs(like).max())
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("family", FAMILIES, ids=["rank 1", "rank 2", "dense"])
@given(step=steps(), on_gpu=st.booleans())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_correction_is_the_clear_one(family, step, on_gpu):
    shapes, present, rows, accumulated, scale, seed = step
    count = 2
    gradients, deltas, weights = drawn(shapes, seed, count)
    unit = 1.0 if scale is None else scale
    mask = [torch.full(shape, float(there)) for shape, there in zip(shapes, present, strict=True)]

    def work(put):
        points = [nn.Parameter(put(torch.zeros(shape))) for shape in shapes]
        placed = [[put(g) if there else None for g, there in zip(each, present, strict=True)] for each in gradients]
        learner, directions = learned(family, points, placed, count)
        for parameter, gradient in zip(points, placed[-1], strict=True):
            parameter.grad = None if gradient is None else gradient * unit
        # As the reference reads them off: where a unit step ends.
        u = torch.stack([torch.cat([part.reshape(-1) for part in numbers(moved(directions, points, j))]) for j in range(count)])
        correction = Correction(points, directions, ControlVariate(put(deltas), put(weights), beta=1.0))
        moments = correction.apply(rows, accumulated, None if scale is None else lambda t: t * scale, slopes=learner.slopes)
        result = [torch.zeros(p.shape) if p.grad is None else numbers([p.grad])[0] for p in points]
        return u.double().numpy(), result, numbers([moments])[0].numpy()

    with torch.no_grad():
        u, result, moments = on(work, on_gpu)
    used = [g * there for g, there in zip(gradients[-1], mask, strict=True)]
    mean = reference.weighted_mean(deltas.double().numpy(), weights.tolist())
    centred = (deltas.double().numpy() - mean)[rows]
    ones = np.ones(count)
    expected = reference.corrected(
        unit * flat(used), reference.orthonormal_basis(u), centred, accumulated, ones, flat(mask), unit
    )
    check(flat(result), expected, flat(used) * unit)
    before, after = flat(used) @ flat(used), expected @ expected / unit**2
    np.testing.assert_allclose(moments, [before, before - after], rtol=1e-3, atol=1e-3 * max(1.0, before))


def moved(directions, points, index):
    """Where a unit step from the origin ends."""
    origins = [torch.zeros_like(p) for p in points]
    ends = [torch.full_like(p, 7.0) for p in points]
    directions.move(ends, origins, index, 1.0)
    return ends


def on(work, on_gpu):
    """What some work gives on the CPU or on the pretended GPU."""
    if not on_gpu:
        return work(lambda tensor: tensor.clone())
    with pretended_gpu(pytest.MonkeyPatch) as gpu:
        return work(gpu.put)


@given(step=steps(), on_gpu=st.booleans())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_carried_rows_and_their_coefficient_are_the_clear_ones(step, on_gpu):
    shapes, present, rows, accumulated, scale, seed = step
    rows = rows[:1] * len(rows)  # of one row, or the step would refresh none
    count = 2
    gradients, deltas, _ = drawn(shapes, seed, count)

    def work(put):
        points = [nn.Parameter(put(torch.zeros(shape))) for shape in shapes]
        directions = OrthonormalDirections().draw(points, count, seeded(3))
        table = CarriedRows(put(torch.ones(4, dtype=torch.float64)), count, deltas=put(deltas))
        correction = Correction(points, directions, table, coefficient=Regression(count))
        u = torch.stack([torch.cat([part.reshape(-1) for part in numbers(moved(directions, points, j))]) for j in range(count)])
        for parameter, gradient, there in zip(points, gradients[-1], present, strict=True):
            parameter.grad = put(gradient * (scale or 1.0)) if there else None
        correction.apply(rows, accumulated, None if scale is None else lambda t: t * scale)
        table.begin_epoch()
        return u.double().numpy(), numbers([table.correction(k) for k in range(4)])

    with torch.no_grad():
        u, found = on(work, on_gpu)
    used = [g * there for g, there in zip(gradients[-1], present, strict=True)]
    expected = deltas.double().numpy().copy()
    expected[rows[0]] = 0.5 * expected[rows[0]] + 0.5 * (u @ flat(used) * accumulated / len(rows))
    check(torch.stack(found).numpy(), expected - expected.mean(axis=0), flat(used))


@pytest.mark.parametrize("family", [GradientSubspaceDirections(), OrthonormalDirections()], ids=["factored", "stored"])
@given(sizes=st.lists(st.tuples(st.integers(4, 9), st.integers(4, 7)), min_size=1, max_size=3), seed=st.integers(0, 2**20))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_correction_of_shards_is_that_of_the_whole(family, sizes, seed):
    gradients, deltas, weights = drawn(sizes, seed, 2)

    def work(mesh):
        def put(tensor):
            return tensor.clone() if mesh is None else shard(tensor, mesh)

        points = [put(torch.zeros(shape)) for shape in sizes]
        directions = family.draw(points, 2, seeded(1))
        for parameter, gradient in zip(points, gradients[-1], strict=True):
            parameter.grad = put(gradient)
        Correction(points, directions, ControlVariate(deltas, weights, 1.0)).apply([1])
        return [local(p.grad).clone() for p in points]

    whole = work(None)
    with pytest.MonkeyPatch.context() as patch:
        ranks = on_ranks(2, work, patch)
    for position, expected in enumerate(whole):
        found = torch.cat([rank[position] for rank in ranks])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
