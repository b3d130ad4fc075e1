"""Points of parameter space in all shapes, types and layouts."""

import pytest
import torch

from lightning_vamo.core.directions import (
    CoordinateDirections,
    Directions,
    GaussianDirections,
    OrthonormalDirections,
    RademacherDirections,
    SphereDirections,
)
from tests.support.problems import seeded

RANDOM = [SphereDirections, GaussianDirections, RademacherDirections, OrthonormalDirections]


ALL = [*[family() for family in RANDOM], *[family("seeded") for family in RANDOM], CoordinateDirections()]


SHAPES = [(3, 4), (), (0,), (5,), (2, 1, 3)]


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def name(value):
    if isinstance(value, Directions):
        return f"{type(value).__name__}-{getattr(value, 'storage', 'axes')}"
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def each(argument, values):
    return pytest.mark.parametrize(argument, values, ids=name)


def zeros(shapes, dtype=torch.float32):
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


def noise(shapes, dtype=torch.float32, seed=11):
    generator = seeded(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def irregular(dtype=torch.float32, seed=12):
    """A transposed matrix, a channels-last kernel, a strided vector, an empty tensor and a number."""
    matrix, kernel, vector, empty, number = noise([(5, 4), (2, 3, 2, 2), (6,), (0, 3), ()], dtype, seed)
    return [matrix.t(), kernel.to(memory_format=torch.channels_last), vector[::2], empty, number]


def layouts(dtype):
    return {"regular": noise(SHAPES, dtype), "irregular": irregular(dtype)}


def similar(tensors, seed):
    """Other numbers in the very layout of `tensors`."""
    result = []
    for position, tensor in enumerate(tensors):
        base = torch.zeros(
            1 + sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n), dtype=tensor.dtype
        )
        view = base.as_strided(tensor.shape, tensor.stride())
        view.copy_(torch.randn(tensor.shape, generator=seeded(100 * seed + position), dtype=torch.float64))
        result.append(view)
    return result
