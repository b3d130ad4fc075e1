"""Arithmetic on few numbers (a number for each direction) in float64, and on thin factors in their own type.

On a CPU the time of such arithmetic is that of the calls, and NumPy's calls take a third of torch's. Elsewhere the numbers stay
in tensors on their device: to read one would make the program wait for the device. Both libraries spell what is needed here
alike, so that an expression is written once, with the functions of the :func:`library` that its numbers belong to.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Small: TypeAlias = Any
"""A NumPy array or number on a CPU, a tensor elsewhere; float64 unless something else is said, or truth values."""

_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def small(tensor: Tensor) -> Small:
    """The numbers of a small tensor without a gradient; do not write to them, as they may share the tensor's memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy().astype(np.float64, copy=False)
    return tensor.double()


def array(tensor: Tensor) -> Small:
    """A tensor's numbers as an array that shares the tensor's memory, in float32 or float64."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def wide(values: Small) -> Small:
    """The numbers in float64."""
    return values.double() if isinstance(values, Tensor) else values.astype(np.float64)


def product(left: Small, right: Small, out: Small | None = None) -> Small:
    """The matrix product of matrices or vectors; unlike ``@`` on arrays, numbers that are not finite raise no warning."""
    if not isinstance(left, Tensor):
        return np.dot(left, right, out=out)
    if out is not None and left.dim() == 1:  # `matmul` would make a matrix of the result first, and warn of that
        return torch.mv(right.t(), left, out=out)
    return torch.matmul(left, right, out=out)


def inner_products(rows: Small, others: Small) -> Small:
    """The inner product of each row with the row of the same index, in their own type: shape ``(q,)``."""
    return torch.linalg.vecdot(rows, others) if isinstance(rows, Tensor) else np.einsum("ij,ij->i", rows, others)


def repeated(column: Small, times: int) -> Small:
    """Each row repeated."""
    if times == 1:
        return column
    return column.repeat_interleave(times, 0) if isinstance(column, Tensor) else column.repeat(times, 0)


def typed(values: Small, like: Small) -> Small:
    """The numbers in the type of other numbers."""
    return values.to(like.dtype) if isinstance(values, Tensor) else values.astype(like.dtype)


def zeros(*shape: int, device: torch.device) -> Small:
    """Zeros for sums of numbers whose gradients are on ``device``."""
    if device.type == "cpu":
        return np.zeros(shape)
    return torch.zeros(shape, dtype=torch.float64, device=device)


def placed(values: Small, device: torch.device) -> Small:
    """The numbers in the form that gradients on ``device`` use; unchanged if they have that form."""
    if isinstance(values, Tensor):
        return values if values.device == device else small(values.to(device))
    return values if device.type == "cpu" else torch.from_numpy(values).to(device)


def tensor_of(values: Small, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of the numbers, on their device.

    Args:
        values: The numbers, which the tensor may share.
        dtype: float32 or float64.

    Returns:
        The tensor.
    """
    if isinstance(values, Tensor):
        return values.to(dtype)
    return torch.from_numpy(np.asarray(values, _TYPES[dtype]))


def stacked(*values: Small) -> Small:
    """Numbers of one shape as the rows of a new array."""
    return torch.stack(values) if isinstance(values[0], Tensor) else np.array(values)


def all_finite(values: Small) -> Small:
    """Whether a vector's numbers are finite and less than 1e154; in few calls, and without a read from a GPU."""
    square = product(values, values)
    return square.isfinite() if isinstance(square, Tensor) else math.isfinite(square)


def finite_or_zero(values: Small, finite: Small) -> Small:
    """The numbers, with zeros for numbers that are not finite, so that later arithmetic raises no warning."""
    if isinstance(values, Tensor):
        return torch.where(finite, values, 0.0)
    return values if finite else np.zeros_like(values)


def library(values: Small) -> Any:
    """The module whose functions take these numbers: ``torch`` or ``numpy``."""
    return torch if isinstance(values, Tensor) else np


def zeroed_unless(condition: Small, tensor: Tensor) -> Tensor:
    """Set a tensor to zero, in place, unless a condition holds; the condition is not read on a GPU."""
    if isinstance(condition, Tensor):
        return tensor.masked_fill_(condition.logical_not(), 0.0)
    return tensor if condition else tensor.zero_()
