"""Inner products of gradients on a CPU, as numbers of Python: NumPy computes them in fewer and shorter calls than torch."""

import functools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**15
"""How many numbers are read at a time, so that all products of a block are computed while it is in the cache."""

_TYPES = {torch.float32, torch.float64}

# Numbers that overflow are found by whoever reads the sums.
_QUIET = functools.partial(np.errstate, over="ignore", invalid="ignore")


def can_be_read(tensors: Sequence[Tensor]) -> bool:
    """Whether :func:`sum_of_squares` and :func:`sums_of_products` can compute with tensors.

    Args:
        tensors: Any tensors, detached.

    Returns:
        True for contiguous tensors of one type, float32 or float64, on the CPU.
    """
    kinds = {(tensor.dtype, tensor.device.type) for tensor in tensors}
    if len(kinds) != 1 or not all(tensor.is_contiguous() for tensor in tensors):
        return False
    [(dtype, device)] = kinds
    return device == "cpu" and dtype in _TYPES


def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """The squared norm of tensors.

    Args:
        tensors: Tensors, all of which :func:`can_be_read`.

    Returns:
        The squared norm, computed in the type of the tensors block by block, and summed in float64; infinite if it overflows.
    """
    total = 0.0
    with _QUIET():
        for numbers in (tensor.numpy().reshape(-1) for tensor in tensors):
            for start in range(0, len(numbers), BLOCK):
                block = numbers[start : start + BLOCK]
                total += float(np.dot(block, block))
    return total


def sums_of_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """The squared norms and the inner product of two lists of tensors.

    Args:
        pairs: Pairs of tensors of the same shape, all of which :func:`can_be_read`.

    Returns:
        The squared norm of all first tensors, the inner product of the first with the second, and the squared norm of the
        second; see :func:`sum_of_squares`.
    """
    first = product = second = 0.0
    with _QUIET():
        for one, other in pairs:
            lefts, rights = one.numpy().reshape(-1), other.numpy().reshape(-1)
            for start in range(0, len(lefts), BLOCK):
                left, right = lefts[start : start + BLOCK], rights[start : start + BLOCK]
                first += float(np.dot(left, left))
                product += float(np.dot(left, right))
                second += float(np.dot(right, right))
    return first, product, second
