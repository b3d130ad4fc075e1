"""Add one matrix of factored directions to a parameter, or subtract the matrix from the parameter's gradient."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.products import MANY_ROWS

# How many numbers are computed at a time on a CPU, so that they are in its cache when they are read again.
BLOCK = 2**19


class Update:
    r"""The products :math:`A_j B_j^\top` of one matrix.

    The gradients of an embedding have many rows of zeros. Directions learned from these gradients have zeros in the rows in
    which all gradients had zeros, and only the other rows are computed.

    Args:
        left: The columns of :math:`A_j`, shape ``(q * rank, rows)``, which must not change later.
        right: The columns of :math:`B_j`, shape ``(q * rank, columns)``, which must not change later.
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self._left = left
        self._columns = left.t()
        self._right = right
        self._views: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._touched: list[tuple[Tensor, Tensor]] | None = None
        # Not on a GPU, which has the bandwidth for all rows; finding the zeros would wait for it.
        if left.device.type == "cpu" and left.shape[1] >= MANY_ROWS:
            rows = np.flatnonzero(left.numpy().any(axis=0))
            # To pick single rows takes a few times as long as to go through rows in order.
            if len(rows) < left.shape[1] / 4:
                self._touched = _parts(left, torch.from_numpy(rows), right.shape[1])

    def subtract_(self, vector: Tensor, right: Tensor) -> None:
        """Subtract a combination of the products from a gradient, in place.

        Args:
            vector: The gradient, of the parameter's shape.
            right: The right factors, times their coefficients.
        """
        in_place = _in_place(vector, right)
        wide = vector
        if vector.dim() != 2 or not in_place:
            wide = vector.reshape(-1, right.shape[1]).to(right)
        if self._touched is None:
            wide.addmm_(self._columns, right, alpha=-1)
        else:
            for rows, left in self._touched:
                wide.index_add_(0, rows, torch.mm(left.t(), right), alpha=-1)
        if not in_place:
            vector.copy_(wide.view(vector.shape))

    def move(self, target: Tensor, origin: Tensor, factors: slice, distance: float, *, near: bool) -> None:
        """Set a parameter to an origin plus a step along one direction.

        Args:
            target: The parameter, to overwrite.
            origin: The origin, which shares no storage with the parameter.
            factors: Place of the direction's factors among the factors of all directions.
            distance: The step.
            near: Whether the parameter holds the origin, or the origin plus a step along another of the directions.
        """
        left, left_columns, right = self._factors(factors)
        if len(left) == 1 and self._touched is None and _is_matrix(target, right) and _is_matrix(origin, right):
            torch.addcmul(origin, left_columns, right, value=distance, out=target)  # most often
            return
        size, columns = right.shape
        if not (_in_place(target, right) and _in_place(origin, right)):
            moved = _moved(origin.reshape(-1, columns).to(left), left, right, distance)
            target.copy_(moved.view(target.shape))
            return
        end, begin = target.view(-1, columns), origin.view(-1, columns)
        if self._touched is None:
            for part in _blocks(len(begin), columns, whole=size == 1 or begin.device.type != "cpu"):
                _moved(begin.narrow(0, *part), left.narrow(1, *part), right, distance, out=end.narrow(0, *part))
            return
        if not near:
            end.copy_(begin)
        for rows, touched in self._touched:
            some = touched.narrow(0, factors.start, size)
            end.index_copy_(0, rows, _moved(begin.index_select(0, rows), some, right, distance))

    def _factors(self, place: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The left factors of a direction, the same as columns, and the right factors; views take a while, so they are kept."""
        if place.start not in self._views:
            left, right = (part[place] for part in (self._left, self._right))
            self._views[place.start] = left, left.t(), right
        return self._views[place.start]


def _moved(origin: Tensor, left: Tensor, right: Tensor, distance: float, out: Tensor | None = None) -> Tensor:
    """An origin plus a product; a product of rank one is added by broadcasting, which is as fast as a copy of the matrix."""
    if len(left) == 1:
        return torch.addcmul(origin, left.t(), right, value=distance, out=out)
    return torch.addmm(origin, left.t(), right, alpha=distance, out=out)


def _in_place(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor is a matrix of the factors' type, so that no copy is needed."""
    return tensor.dtype == like.dtype and tensor.is_contiguous()


def _is_matrix(tensor: Tensor, like: Tensor) -> bool:
    """Whether a tensor is a matrix of the factors' type as it stands."""
    return tensor.dim() == 2 and _in_place(tensor, like)


def _blocks(rows: int, columns: int, *, whole: bool = False) -> Iterator[tuple[int, int]]:
    """The first row and the row count of each block: blocks fit a processor's cache; if ``whole``, there is one block."""
    size = max(1, rows if whole else BLOCK // max(1, columns))
    return ((start, min(size, rows - start)) for start in range(0, rows, size))


def _parts(left: Tensor, rows: Tensor, columns: int) -> list[tuple[Tensor, Tensor]]:
    """Some rows, and the matching columns of the left factors, a block at a time."""
    parts = [rows.narrow(0, *part) for part in _blocks(len(rows), columns)]
    return [(part, left.index_select(1, part)) for part in parts]
