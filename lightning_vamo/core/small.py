"""Small arithmetic: on a number for each direction, in float64, and on thin factors in their own type.

Small arrays take most of their time in calls, and on a CPU NumPy's calls take a third of the time of torch's: so there the
numbers are NumPy arrays. On other devices the numbers stay in tensors, since to read a number would make the program wait for
the device. Both libraries have the same names for the functions used here, so an expression is written once, with the functions
of the :func:`library` of its numbers.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Small: TypeAlias = Any
"""A NumPy array or number on a CPU, a tensor on other devices; float64 unless stated otherwise, or bool."""

_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def small(tensor: Tensor) -> Small:
    """The numbers of a small tensor without a gradient; do not write to the numbers, which may share the tensor's memory."""
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
    """The matrix product of matrices or vectors, without NumPy's warning about numbers that are not finite."""
    if not isinstance(left, Tensor):
        return np.dot(left, right, out=out)
    if out is not None and left.dim() == 1:  # `matmul` would make a matrix of the result first, and warn of that
        return torch.mv(right.t(), left, out=out)
    return torch.matmul(left, right, out=out)


def inner_products(rows: Small, others: Small) -> Small:
    """The inner product of each row with the row of the same index, in their own type: shape ``(q,)``."""
    return torch.linalg.vecdot(rows, others) if isinstance(rows, Tensor) else _vecdot(rows, others)


def _einsum(rows: Any, others: Any) -> Any:
    return np.einsum("ij,ij->i", rows, others)


# NumPy 2 has a function that takes a third of the time.
_vecdot = getattr(np, "vecdot", _einsum)


def within_one(values: Small) -> Small:
    """Clip numbers to ``[0, 1]``; NaN stays."""
    # NumPy's own `clip` takes as long as four of its operations.
    return values.clamp(0, 1) if isinstance(values, Tensor) else np.minimum(np.maximum(values, 0.0), 1.0)


def repeated(column: Small, times: int) -> Small:
    """Repeat each row."""
    if times == 1:
        return column
    return column.repeat_interleave(times, 0) if isinstance(column, Tensor) else column.repeat(times, 0)


def typed(values: Small, like: Small) -> Small:
    """Convert numbers to the type of other numbers."""
    return values.to(like.dtype) if isinstance(values, Tensor) else values.astype(like.dtype)


def zeros(*shape: int, device: torch.device) -> Small:
    """Zeros for sums of numbers whose gradients are on ``device``; without a shape one number, of Python on a CPU."""
    if device.type == "cpu":
        return np.zeros(shape) if shape else 0.0
    return torch.zeros(shape, dtype=torch.float64, device=device)


def placed(values: Small, device: torch.device) -> Small:
    """Convert numbers to the form for gradients on ``device``; numbers in that form are returned unchanged."""
    if isinstance(values, Tensor):
        return values if values.device == device else small(values.to(device))
    return values if device.type == "cpu" else torch.from_numpy(values).to(device)


def tensor_of(values: Small, dtype: torch.dtype = torch.float64) -> Tensor:
    """A tensor of the numbers, on their device.

    Args:
        values: The numbers; the tensor may share their memory.
        dtype: float32 or float64.

    Returns:
        The tensor.
    """
    if isinstance(values, Tensor):
        return values.to(dtype)
    return torch.from_numpy(np.asarray(values, _TYPES[dtype]))


def one_of(tensor: Tensor, device: torch.device) -> Small:
    """A tensor's only number, in the form that gradients on ``device`` use: as :func:`zeros` without a shape gives it."""
    return float(tensor) if device.type == "cpu" else tensor.to(device, torch.float64)


def stacked(*values: Small) -> Small:
    """Make a new array whose rows are arrays of the same shape."""
    return torch.stack(values) if isinstance(values[0], Tensor) else np.array(values)


def added_up(start: Small, terms: Small) -> Small:
    """Add terms to a sum one after another, so that the sum does not depend on how many terms are added at once.

    Args:
        start: The sum so far.
        terms: The terms, along the first axis.

    Returns:
        The new sum.
    """
    if not isinstance(start, Tensor):
        return np.concatenate((start[None], terms)).cumsum(0)[-1]
    for term in terms:  # `cumsum` of such numbers is not deterministic on a GPU
        start = start + term
    return start


def running_count(flags: Small) -> Small:
    """How many of the flags up to each are set, for flags that are 0 or 1."""
    # Of whole numbers, since `cumsum` of others is not deterministic on a GPU.
    return flags.long().cumsum(0).to(flags.dtype) if isinstance(flags, Tensor) else flags.cumsum(0)


def all_finite(values: Small) -> Small:
    """Whether a vector's numbers are all finite and less than 1e154; takes few calls, and reads nothing from a GPU."""
    square = product(values, values)
    return square.isfinite() if isinstance(square, Tensor) else math.isfinite(square)


def finite_or_zero(values: Small, finite: Small) -> Small:
    """Replace numbers that are not finite by zeros, so that later arithmetic raises no warning."""
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
