"""What a gradient gives with factored directions: thin products, from which slopes follow, and directions are learned."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factors import Factors, zeros
from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.sharding import local
from lightning_vamo.core.small import Small, small, zeroed_unless

# From so many rows on, it pays on a CPU to look for those that are zero.
MANY_ROWS = 4096


class Products:
    r"""The products of a gradient with directions :math:`A_j B_j^\top`, in memory that each gradient uses anew.

    Args:
        layout: Which parameters are factored.
        count: ``q``, the number of directions.

    Attributes:
        factors: :math:`G B_j`, :math:`G^\top A_j` of each matrix :math:`G`, the latter of the rows in this process, and of the
            rest the numbers themselves, without a dimension for directions. Zeros where a gradient is missing.
    """

    def __init__(self, layout: Layout, count: int) -> None:
        self.layout = layout
        self.factors = zeros(layout, count)
        self.factors.whole = layout.empty(layout.sizes[2]).zero_()
        self._squares = layout.empty(len(layout.matrices) + 1).zero_()
        self._square_of = self._squares.unbind()
        self._on_cpu = layout.device.type == "cpu"

    def take(self, tensors: Sequence[Tensor | None], directions: Factors, right: bool = True) -> None:
        r"""Multiply a gradient.

        Args:
            tensors: The gradient of each parameter, or None.
            directions: What to multiply it with.
            right: Whether to work out :math:`G^\top A_j`, which only learning needs.
        """
        layout, to = self.layout, self.factors
        views = zip(directions.lefts, directions.transposed, to.transposed, to.rights, strict=True)
        for matrix, square, (a, (_, b), (p, _), w) in zip(layout.matrices, self._square_of[:-1], views, strict=True):
            wide = layout.matrix(matrix, tensors)
            if wide is None:
                for part in (p, w, square):
                    part.zero_()
                continue
            # All that is read of a matrix is read before the next one: they fit a processor's cache one by one.
            if wide.dtype != p.dtype:
                wide = wide.to(p.dtype)
            # A GPU has the bandwidth to take all rows, and would have to be waited for.
            rows = self._rows(wide, square) if self._on_cpu else None
            if rows is not None:
                wide, a = wide.index_select(0, rows), a.index_select(1, rows)
                p.zero_().index_copy_(0, rows, torch.mm(wide, b))
            else:
                torch.mm(wide, b, out=p)
            if right:
                torch.mm(a, wide, out=w)
        rest = layout.rest(tensors, out=to.whole)
        if self._on_cpu:
            torch.dot(rest, rest, out=self._square_of[-1])
        else:
            # Two kernels, where one for each parameter would take longer to launch than to run.
            present = [local(tensor) for tensor in tensors if tensor is not None]
            self._squares = rest.new_zeros(1)
            if present:
                self._squares = torch.stack(torch._foreach_norm(present, dtype=rest.dtype))

    def _rows(self, wide: Tensor, square: Tensor) -> Tensor | None:
        """Work out a matrix's squared norm; which rows are not zero, where most are, as in the gradient of an embedding."""
        if len(wide) < MANY_ROWS:
            flat = wide.reshape(-1)
            torch.dot(flat, flat, out=square)
            return None
        norms = torch.linalg.vector_norm(wide, dim=1)
        torch.dot(norms, norms, out=square)
        rows = np.flatnonzero(norms.numpy())
        return torch.from_numpy(rows) if len(rows) < len(wide) / 2 else None

    def along(self, directions: Factors) -> Small:
        """Inner products of the gradient with the directions, of this process's part, shape ``(q,)``."""
        matrices = small(torch.linalg.vecdot(directions.left, self.factors.left))
        if self.layout.rank > 1:
            matrices = matrices.reshape(-1, self.layout.rank).sum(1)
        return matrices + small(torch.mv(directions.whole, self.factors.whole))

    @property
    def square(self) -> Small:
        """The gradient's squared norm, of this process's part, shape ``()``."""
        squares = small(self._squares)
        return squares.sum() if self._on_cpu else (squares * squares).sum()

    def zero_unless(self, finite: Small) -> None:
        """Forget a gradient that is not finite."""
        for part in self.factors.tensors():
            zeroed_unless(finite, part)
