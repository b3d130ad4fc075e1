"""Inner products that are read from a CPU, against torch's in float64."""

import math

import pytest
import torch

from lightning_vamo.core.control.anchored import Fixed, GradientCorrection
from lightning_vamo.core.control.products import BLOCK, can_be_read, sum_of_squares, sums_of_products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(3,), (1, BLOCK), (BLOCK + 1, 7), (2 * BLOCK + 5,)])
def test_sums_are_those_of_all_numbers(dtype, sizes):
    generator = torch.Generator().manual_seed(1)
    pairs = [tuple(torch.randn(2, size, generator=generator, dtype=dtype).unbind()) for size in sizes]
    expected = [sum(float(one.double() @ other.double()) for one, other in pairs) for pairs in _choices(pairs)]
    found = sums_of_products(pairs)
    assert found == pytest.approx(expected, rel=1e-5 if dtype is torch.float32 else 1e-12)
    assert sum_of_squares(one for one, _ in pairs) == pytest.approx(found[0], rel=1e-12)


def _choices(pairs):
    return [(one, one) for one, _ in pairs], pairs, [(other, other) for _, other in pairs]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), 1e30])
def test_a_number_that_is_not_finite_shows(odd):
    tensor = torch.ones(BLOCK + 3)
    tensor[-1] = odd
    assert not math.isfinite(sum_of_squares([tensor]))


def test_which_tensors_can_be_read():
    plain = torch.ones(4, 2)
    assert can_be_read([plain, torch.ones(3)])
    assert not can_be_read([plain, plain.double()])
    assert not can_be_read([plain.t()])
    assert not can_be_read([plain.bfloat16()])
    assert not can_be_read([plain.to("meta")])


@pytest.mark.parametrize("square", [1e-3, 1e30])
def test_a_correction_without_readable_sums_removes_as_much(square):
    """The sums of bfloat16 gradients stay in tensors; those of float32 are numbers of Python."""
    moments = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(torch.zeros(8, dtype=dtype))
        parameter.grad = torch.full((8,), 0.5, dtype=dtype)
        row = torch.full((8,), 0.25 if square < 1 else square)
        correction = GradientCorrection([parameter], Fixed(1.0))
        moments.append([float(one) for one in correction.apply([row])])
        assert bool(correction.usable) == (square < 1)
        assert parameter.grad.tolist() == [0.25 if square < 1 else 0.5] * 8
    assert moments[0] == moments[1] == [2.0, 1.5 if square < 1 else 0.0]
