"""Weights that are moved in place come back bit for bit, without a copy, and steps along directions are SGD's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_vamo.core.directions import CoordinateDirections, GaussianDirections, MaskedDirections
from lightning_vamo.core.directions.learned.subspace import GradientSubspaceDirections
from lightning_vamo.core.gradient import excursion as module
from lightning_vamo.core.gradient import moved
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.gradient.moved import Moved
from lightning_vamo.core.gradient.remainder import Remainder
from lightning_vamo.core.gradient.update import Rate, descend, write_gradient
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from tests.support.bits import same_bits
from tests.support.points import ALL, each, irregular, layouts, noise
from tests.support.pretend_gpu import pretended_gpu
from tests.support.problems import seeded

TYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MOVING = [*ALL, CoordinateDirections(2), *(MaskedDirections(family, 0.5) for family in ALL)]


@pytest.fixture(autouse=True)
def no_copies(monkeypatch):
    """Small pieces are copied; here they stand for large ones."""
    monkeypatch.setattr(moved, "SMALL", 0)


def weights(dtype, scale, seed=0, size=5000):
    x = (torch.randn(size, generator=seeded(seed), dtype=torch.float64) * scale).to(dtype)
    x[:9] = torch.tensor([0.0, -0.0, float("inf"), float("nan"), -float("inf"), 1e-40, -1e-38, 2.0**-6, -(2.0**-6)])
    return x


@each("dtype", TYPES)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 0.03, 1.0, 1e4])
@pytest.mark.parametrize("special", [False, True])
def test_a_piece_comes_back_to_the_bit(dtype, scale, special):
    x = weights(dtype, scale)[0 if special else 9 :]
    before, part = x.clone(), torch.randn(len(x), generator=seeded(1)).to(torch.promote_types(dtype, torch.float32))
    away = Moved(x, part, 1e-3)
    plus = x.clone()
    away.turn(x, part)
    minus = x.clone()
    away.turn(x, part)
    away.turn(x, part)
    assert same_bits([x], [minus])
    away.back(x, part)
    assert same_bits([x], [before])
    if not special and 0 < scale < 1:
        step = (plus.double() - minus.double()) / 2
        error = (step - 1e-3 * part.double()).abs().max()
        assert float(error) <= 2 * torch.finfo(dtype).eps * (float(before.double().abs().max()) + 0.01)


@each("dtype", TYPES)
def test_a_small_piece_is_copied(dtype, monkeypatch):
    monkeypatch.setattr(moved, "SMALL", 50)
    small, large = weights(dtype, 0.1, size=59)[9:], weights(dtype, 0.1, size=60)[9:]
    for piece in (small, large):
        before, part = piece.clone(), torch.randn(len(piece), generator=seeded(1)).to(torch.promote_types(dtype, torch.float32))
        away = Moved(piece, part, 0.1)
        assert (away.bytes == piece.nbytes) == (piece is small)
        assert torch.allclose(piece.double(), before.double() + 0.1 * part.double(), atol=torch.finfo(dtype).eps)
        away.turn(piece, part)
        assert torch.allclose(piece.double(), before.double() - 0.1 * part.double(), atol=torch.finfo(dtype).eps)
        away.back(piece, part)
        assert same_bits([piece], [before])


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(TYPES), st.integers(0, 2**31), st.floats(-12, 6), st.floats(-12, 6))
def test_any_bits_come_back_from_any_step(dtype, seed, size, distance):
    """Weights of all exponents: random bit patterns, and steps from far below the last place to far above all of them."""
    random = np.random.default_rng(seed)
    whole = {2: np.int16, 4: np.int32, 8: np.int64}[dtype.itemsize]
    info = np.iinfo(whole)
    x = torch.from_numpy(random.integers(info.min, info.max, 400, dtype=whole, endpoint=True)).view(dtype)
    some = torch.randn(100, generator=seeded(seed), dtype=torch.float64) * 10**size
    x[:100] = some.to(dtype)
    before, part = x.clone(), torch.randn(400, generator=seeded(seed + 1)).to(torch.promote_types(dtype, torch.float32))
    for start in (0, 100):  # the second is of ordinary numbers alone
        piece, numbers = x[:100] if start else x, part[:100] if start else part
        away = Moved(piece, numbers, 10**distance)
        away.turn(piece, numbers)
        away.back(piece, numbers)
        assert same_bits([x], [before])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 0.02), (torch.bfloat16, 0.03), (torch.float16, 0.03)])
def test_what_it_takes_to_come_back_is_little(dtype, most):
    x = torch.randn(2**17, generator=seeded(0)).mul_(0.03).to(dtype)
    away = Moved(x, torch.randn(2**17, generator=seeded(1)), 1e-3)
    assert 0 < away.bytes < most * x.nbytes


def test_zeros_take_a_small_part_of_a_copy_and_nothing_takes_more_than_one():
    for dtype in (torch.float32, torch.bfloat16):
        zeros = torch.zeros(2**14, dtype=dtype)
        assert Moved(zeros, torch.randn(2**14, generator=seeded(1)), 1e-3).bytes < 0.15 * zeros.nbytes
        tiny = torch.full((2**14,), 1e-30, dtype=dtype) * torch.rand(2**14, generator=seeded(2)).to(dtype)
        assert Moved(tiny, torch.randn(2**14, generator=seeded(1)), 1e-3).bytes == tiny.nbytes


def test_without_the_remainder_weights_drift():
    x = torch.randn(2**12, generator=seeded(0)).mul_(0.03).bfloat16()
    before, kept = x.clone(), x.clone()
    for seed in range(100):
        step = torch.randn(len(x), generator=seeded(seed)) * 1e-3
        x = ((x + step).bfloat16() - step).bfloat16()
        remainder = Remainder(kept, step)
        remainder.undo(kept, step)
    assert (x != before).float().mean() > 0.1
    assert same_bits([kept], [before])


@pytest.mark.parametrize(
    ("layout", "block"), [("regular", module.BLOCK), ("irregular", 3), ("irregular", module.BLOCK)], ids=str
)
@each("dtype", [torch.float32, torch.bfloat16])
@each("family", MOVING)
def test_an_excursion_goes_where_move_goes_and_comes_back(family, dtype, layout, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    parameters = layouts(dtype)[layout]
    before = [parameter.clone() for parameter in parameters]
    directions = family.draw(parameters, 2, seeded(4))
    excursion = Excursion(parameters, directions)
    for index, distance in ((0, 0.3), (0, -0.3), (1, -0.3), (1, 0.3), (0, 0.1)):
        excursion.go(index, distance)
        assert excursion.away
        expected = [torch.empty_like(origin) for origin in before]
        directions.move(expected, before, index, distance)
        tolerance = 4 * torch.finfo(dtype).eps
        assert all(torch.allclose(*pair, rtol=tolerance, atol=tolerance) for pair in zip(parameters, expected, strict=True))
        assert not same_bits(parameters, before)
    excursion.back()
    assert not excursion.away
    assert same_bits(parameters, before)


def test_each_parameter_may_go_a_distance_of_its_own():
    parameters = noise([(4,), (3,)], torch.float64)
    before = [parameter.clone() for parameter in parameters]
    directions = GaussianDirections("seeded").draw(parameters, 1, seeded(0))
    excursion = Excursion(parameters, directions)
    excursion.go(0, [0.5, 0.25])
    dense = directions.dense(before)[0]
    expected = torch.cat(before) + torch.cat([dense[:4] * 0.5, dense[4:] * 0.25])
    assert torch.allclose(torch.cat(parameters), expected, rtol=0, atol=1e-12)
    there = [parameter.clone() for parameter in parameters]
    excursion.stay()
    excursion.back()
    assert same_bits(parameters, there)


def test_bfloat16_weights_do_not_drift_in_a_thousand_perturbations():
    [numbers] = noise([(20, 30)], torch.float32)
    numbers[0] = 0
    parameters = [numbers.bfloat16() * 0.05]
    before = [parameter.clone() for parameter in parameters]
    for seed in range(1000):
        excursion = Excursion(parameters, GaussianDirections("seeded").draw(parameters, 1, seeded(seed)))
        for distance in (-0.04, 0.04):
            excursion.go(0, distance)
        excursion.back()
    assert same_bits(parameters, before)


def test_a_part_ahead_is_drawn_in_another_thread_with_the_same_numbers(monkeypatch):
    parameters = [torch.zeros(700_000), torch.zeros(10)]
    directions = GaussianDirections("seeded").draw(parameters, 1, seeded(0))

    def there():
        excursion = Excursion(parameters, directions)
        excursion.go(0, 1.0)
        found = [parameter.clone() for parameter in parameters]
        excursion.back()
        return found

    alone = there()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert same_bits(there(), alone)


def test_what_cannot_be_moved_is_refused():
    point, drawn = [torch.zeros(3).to(torch.float8_e4m3fn)], GaussianDirections("seeded").draw([torch.zeros(3)], 1, seeded(0))
    with pytest.raises(InvalidArgumentError, match=r"`parameters` must have one of the types.*float8_e4m3fn"):
        Excursion(point, drawn)
    point = noise([(4, 3)])
    learner = GradientSubspaceDirections().learner(point, 1, seeded(0))
    learner.observe(noise([(4, 3)], seed=1))
    learner.observe(noise([(4, 3)], seed=2))
    directions = learner.directions(1, seeded(0))
    with pytest.raises(UnsupportedError, match="use a random family, such as GaussianDirections"):
        Excursion(point, directions)
    with pytest.raises(UnsupportedError, match="use a random family"):
        directions.parts(0)


@each("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each("family", [*MOVING, CoordinateDirections()])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("away", [False, True])
def test_a_step_in_place_is_that_of_sgd(family, dtype, count, away):
    parameters = irregular(dtype) if dtype == torch.float64 else noise([(6, 5), (9,), ()], dtype)
    others = [torch.nn.Parameter(parameter.clone()) for parameter in parameters]
    directions = family.draw(parameters, count, seeded(5))
    coefficients = torch.linspace(-2, 3, count, dtype=torch.float64) + 0.1
    groups = [{"params": others[:2], "lr": 0.1, "weight_decay": 0.3}, {"params": others[2:], "lr": 0.7}]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    write_gradient(others, directions, coefficients)
    optimizer.step()
    rates = [Rate(0.1, 0.3)] * 2 + [Rate(0.7)] * (len(others) - 2)
    excursion = Excursion(parameters, directions)
    if away:
        excursion.go(count - 1, 0.2)
    descend(parameters, directions, coefficients.tolist(), rates, excursion)
    assert not excursion.away
    tolerance = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}[dtype]
    for one, other in zip(parameters, others, strict=True):
        assert torch.allclose(one, other.detach(), rtol=tolerance, atol=tolerance)


def test_a_gradient_is_added_to_the_one_that_is_there_at_the_scale_of_a_scaler():
    parameters = [torch.nn.Parameter(part) for part in noise([(3,), (2,)], torch.float64)]
    parameters[0].grad = torch.ones(3, dtype=torch.float64)
    directions = GaussianDirections("seeded").draw(parameters, 2, seeded(5))
    write_gradient(parameters, directions, torch.tensor([1.0, -2.0]), lambda values: 8 * values)
    expected = 8 * torch.tensor([1.0, -2.0], dtype=torch.float64) @ directions.dense(parameters)
    found = torch.cat([parameters[0].grad - 1, parameters[1].grad])
    assert torch.allclose(found, expected, rtol=1e-12)


@each("family", [GaussianDirections(), GaussianDirections("seeded")])
def test_to_write_a_gradient_waits_for_no_gpu(family, monkeypatch):
    with pretended_gpu(monkeypatch) as gpu:
        parameters = [torch.nn.Parameter(gpu.put(part)) for part in noise([(3,), (2,)])]
        directions = family.draw(parameters, 2, seeded(5))
        coefficients = torch.tensor([1.0, -2.0], dtype=torch.float64, device="cpu")
        gpu.waits.clear()
        write_gradient(parameters, directions, coefficients, lambda values: 8 * values)
    assert not gpu.waits
