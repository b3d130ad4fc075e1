"""Thin products of a gradient with factored directions; slopes and new directions are computed from the products."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factors import Factors, zeros
from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.sharding import local
from lightning_vamo.core.small import Small, array, inner_products, product, wide, zeroed_unless

# From so many rows on, it pays on a CPU to look for those that are zero.
MANY_ROWS = 4096


class Products:
    r"""The products of a gradient with directions :math:`A_j B_j^\top`, in memory that all gradients reuse.

    Args:
        layout: Which parameters are factored.
        count: ``q``, the number of directions.

    Attributes:
        factors: :math:`G B_j`, :math:`G^\top A_j` of each matrix :math:`G`, the latter of the rows in this process, and of the
            rest the numbers themselves, without a dimension for directions. Zeros where a gradient is missing.
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
            directions: What to multiply it with.
            right: Whether to work out :math:`G^\top A_j`, which only learning needs.
        """
        layout, to, on_cpu, dtype = self.layout, self.factors, self._on_cpu, self.layout.dtype
        views = zip(layout.matrices, self._square_of, directions.lefts, directions.right_columns, strict=True)
        for (matrix, square, a, b), p, w in zip(views, to.left_columns, to.rights, strict=True):
            gradient = layout.matrix(matrix, tensors)
            if gradient is None:
                for part in (p, w, square):
                    part.zero_()
                continue
            # All that is read of a matrix is read before the next one: they fit a processor's cache one by one.
            if gradient.dtype is not dtype:
                gradient = gradient.to(dtype)
            # A GPU has the bandwidth to take all rows, and would have to be waited for.
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
            # Two kernels, where one for each parameter would take longer to launch than to run.
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

    @np.errstate(all="ignore")  # of gradients that are not finite, as in torch
    def along(self, directions: Factors) -> Small:
        """Inner products of the gradient with the directions, of this process's part, shape ``(q,)``."""
        (_, whole), (_, rest) = directions.arrays, self.factors.arrays
        matrices = inner_products(directions.left_array, self.factors.left_array)
        if self.layout.rank > 1:
            matrices = matrices.reshape(-1, self.layout.rank).sum(1)
        return wide(matrices + product(whole, rest))

    @property
    def square(self) -> Small:
        """The gradient's squared norm, of this process's part, shape ``()``."""
        if not self._on_cpu:
            return wide(self._squares).sum()
        _, rest = self.factors.arrays
        return float(self._square_array.sum()) + float(product(rest, rest))

    def zero_unless(self, finite: Small) -> None:
        """Set the products to zero if the gradient is not finite."""
        for part in self.factors.tensors():
            zeroed_unless(finite, part)
