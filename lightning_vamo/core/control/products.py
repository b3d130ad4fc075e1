"""Inner products of gradients on a CPU, as numbers of Python: NumPy computes them in fewer and shorter calls than torch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**15
"""How many numbers are read at a time, so that all products of a block are computed while it is in the cache."""

_TYPES = {torch.float32, torch.float64}


def can_be_read(tensors: Sequence[Tensor]) -> bool:
    """Whether :func:`own_square` and :func:`sums_of_products` can compute with tensors.

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


def own_square(tensor: Tensor) -> float:
    """The squared norm of a tensor.

    Args:
        tensor: A tensor that :func:`can_be_read`.

    Returns:
        The squared norm, computed in the type of the tensor block by block, and summed in float64.
    """
    numbers = tensor.numpy().reshape(-1)
    if len(numbers) <= BLOCK:
        return float(np.dot(numbers, numbers))
    return sum(float(np.dot(block, block)) for block in np.split(numbers, range(BLOCK, len(numbers), BLOCK)))


def sums_of_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """The squared norms and the inner product of two lists of tensors.

    Args:
        pairs: Pairs of tensors of the same shape, all of which :func:`can_be_read`.

    Returns:
        The squared norm of all first tensors, the inner product of the first with the second, and the squared norm of the
        second; see :func:`own_square`.
    """
    first = product = second = 0.0
    for one, other in pairs:
        lefts, rights = one.numpy().reshape(-1), other.numpy().reshape(-1)
        for start in range(0, len(lefts), BLOCK):
            left, right = lefts[start : start + BLOCK], rights[start : start + BLOCK]
            first += float(np.dot(left, left))
            product += float(np.dot(left, right))
            second += float(np.dot(right, right))
    return first, product, second
