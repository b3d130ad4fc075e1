"""Thin products of a gradient with factored directions, from which slopes and new directions are computed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factors import Factors, zeros
from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.sharding import local
from lightning_vamo.core.small import Small, array, inner_products, product, wide, zeroed_unless

# The number of rows from which on it pays, on a CPU, to look for rows of zeros.
MANY_ROWS = 4096


class Products:
    r"""The products of a gradient with directions :math:`A_j B_j^\top`, in memory that all gradients reuse.

    Args:
        layout: Which parameters are factored.
        count: ``q``, the number of directions.

    Attributes:
        factors: :math:`G B_j` and :math:`G^\top A_j` of each matrix :math:`G`, the latter over this process's rows, and the
            numbers of the other parameters, without a dimension for directions. Zeros stand for missing gradients.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self.factors = Factors(layout, zeros(layout, count).thin, layout.empty(layout.sizes[2]).zero_())
        self._squares = layout.empty(len(layout.matrices)).zero_()
        self._square_of = self._squares.unbind()
        self._square_array = array(self._squares)
        self._on_cpu = layout.device.type == "cpu"

    def take(self, tensors: Sequence[Tensor | None], directions: Factors, right: bool = True) -> None:
        r"""Compute the products of a gradient.

        Args:
            tensors: The gradient of each parameter, or None.
            directions: The directions to multiply the gradient with.
            right: Whether to compute :math:`G^\top A_j`, which only learning needs.
        """
        layout, to, on_cpu, dtype = self.layout, self.factors, self._on_cpu, self.layout.dtype
        views = zip(layout.matrices, self._square_of, directions.lefts, directions.right_columns, strict=True)
        for (matrix, square, a, b), p, w in zip(views, to.left_columns, to.rights, strict=True):
            gradient = layout.matrix(matrix, tensors)
            if gradient is None:
                for part in (p, w, square):
                    part.zero_()
                continue
            # All reads of a matrix come before those of the next matrix, so that a matrix stays in the processor's cache.
            if gradient.dtype is not dtype:
                gradient = gradient.to(dtype)
            # Not on a GPU, which has the bandwidth to take all rows; finding the zeros would wait for it.
            rows = self._rows(gradient, square) if on_cpu else None
            if rows is not None:
                gradient, a = gradient.index_select(0, rows), a.index_select(1, rows)
                p.zero_().index_copy_(0, rows, torch.mm(gradient, b))
            else:
                torch.mm(gradient, b, out=p)
            if right:
                torch.mm(a, gradient, out=w)
        layout.rest(tensors, out=to.whole)
        if not on_cpu:
            # Two kernels for all parameters: one kernel per parameter would take longer to launch than to run.
            present = [local(tensor) for tensor in tensors if tensor is not None]
            norms = torch._foreach_norm(present, dtype=layout.dtype) if present else [to.whole.new_zeros(())]
            self._squares = torch.stack(list(norms)).square()

    def _rows(self, matrix: Tensor, square: Tensor) -> Tensor | None:
        """Compute a matrix's squared norm, and find its nonzero rows if most rows are zero, as in an embedding's gradient."""
        if len(matrix) < MANY_ROWS:
            flat = matrix.reshape(-1)
            torch.dot(flat, flat, out=square)
            return None
        norms = torch.linalg.vector_norm(matrix, dim=1)
        torch.dot(norms, norms, out=square)
        rows = np.flatnonzero(norms.numpy())
        return torch.from_numpy(rows) if len(rows) < len(matrix) / 2 else None

    @np.errstate(all="ignore")  # no warnings for gradients that are not finite, as in torch
    def along(self, directions: Factors) -> Small:
        """Inner products of this process's part of the gradient with the directions, shape ``(q,)``."""
        (_, whole), (_, rest) = directions.arrays, self.factors.arrays
        matrices = inner_products(directions.left_array, self.factors.left_array)
        if self.layout.rank > 1:
            matrices = matrices.reshape(-1, self.layout.rank).sum(1)
        return wide(matrices + product(whole, rest))

    @property
    def square(self) -> Small:
        """The squared norm of this process's part of the gradient, shape ``()``."""
        if not self._on_cpu:
            return wide(self._squares).sum()
        _, rest = self.factors.arrays
        return sum(self._square_array.tolist(), float(product(rest, rest)))

    def zero_unless(self, finite: Small) -> None:
        """Set the products to zero if the gradient is not finite."""
        for part in self.factors.tensors():
            zeroed_unless(finite, part)
