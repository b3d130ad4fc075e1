"""Directions whose matrices are products of thin factors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.algebra import inverse_root, square
from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.layout import Factors, Layout, Matrix
from lightning_vamo.core.sharding import local


class FactoredDirections(ProbeDirections):
    r"""Directions of unit norm in factored form, in general not orthogonal.

    .. math:: W = M^{-1/2}, \qquad M_{jk} = u_j^\top u_k

    turns inner products with them into coordinates in an orthonormal basis of their span, :math:`\sum_k W_{jk} u_k`.

    Args:
        layout: Which parameters are factored.
        factors: The directions; see :func:`normalised`.
    """

    def __init__(self, layout: Layout, factors: Factors) -> None:
        self.count = len(factors.whole)
        self.dimension = layout.dimension
        self.shards = layout.shards
        self.layout = layout
        self.factors = factors
        self.whitening = inverse_root(layout.shards.total(grams(layout, factors).sum(dim=0)))
        self._on_device = self.whitening.to(layout.device)

    def whiten(self, slopes: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.whiten`."""
        return (slopes.double() @ self._on_device.to(slopes.device)).to(slopes.dtype)

    def move(self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float) -> None:
        """See :meth:`ProbeDirections.move`."""
        layout, factors = self.layout, self.factors
        rows = slice(index * layout.rank, (index + 1) * layout.rank)
        for matrix in layout.matrices:
            target, origin = local(targets[matrix.position]), local(origins[matrix.position])
            left, right = factors.left[rows, matrix.left], factors.right[rows, matrix.right]
            moved = torch.addmm(origin.reshape(-1, matrix.columns).to(left), left.t(), right, alpha=distance)
            target.copy_(moved.view(target.shape))
        for whole in layout.wholes:
            target, origin = local(targets[whole.position]), local(origins[whole.position])
            step = factors.whole[index, whole.place].view(origin.shape)
            torch.add(origin, step.to(origin), alpha=distance, out=target)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        products = self.layout.times_right(vectors, self.factors.right)
        return self.whiten(self.shards.total(slopes(self.layout, self.factors, products, self.layout.rest(vectors))))

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`; the dense step is never made, nor read."""
        layout, factors = self.layout, self.factors
        weights = (self._on_device @ coefficients.to(self._on_device)).to(layout.dtype)
        scaled = factors.left * weights.repeat_interleave(layout.rank)[:, None]
        rest, step = layout.rest(vectors), weights @ factors.whole
        parts = [torch.dot(rest, rest), torch.dot(rest, step)]
        norm = torch.zeros((), dtype=torch.float64, device=layout.device)
        for matrix in layout.matrices:
            if vectors[matrix.position] is not None:
                parts += self._subtract(matrix, vectors, scaled)
                norm += (square(scaled[:, matrix.left]) * square(factors.right[:, matrix.right])).sum()
        for whole in layout.wholes:
            vector = vectors[whole.position]
            if vector is not None:
                local(vector).sub_(step[whole.place].view(vector.shape))
                norm += step[whole.place].double().square().sum()
        sums = torch.stack(parts).double().view(-1, 2).sum(dim=0)
        return torch.cat((sums, norm[None])).to(coefficients.device)

    def _subtract(self, matrix: Matrix, vectors: Sequence[Tensor | None], scaled: Tensor) -> list[Tensor]:
        """Subtract from one matrix; returns its squared norm before, and its inner product with the step."""
        held = local(vectors[matrix.position])  # type: ignore[arg-type]
        left, right = scaled[:, matrix.left], self.factors.right[:, matrix.right]
        wide = held.reshape(-1, matrix.columns).to(left)
        flat = wide.reshape(-1)
        moments = [torch.dot(flat, flat), torch.linalg.vecdot(left, right @ wide.t()).sum()]
        wide.addmm_(left.t(), right, alpha=-1)
        if wide.data_ptr() != held.data_ptr():
            held.copy_(wide.view(held.shape))
        return moments


def slopes(layout: Layout, factors: Factors, products: Tensor, rest: Tensor) -> Tensor:
    """Inner products of factored directions with a vector, of this process's part.

    Args:
        layout: Which parameters are factored.
        factors: The directions.
        products: What :meth:`Layout.times_right` gives for the vector and their right factors.
        rest: What :meth:`Layout.rest` gives for the vector.

    Returns:
        Shape ``(q,)``.
    """
    matrices: Tensor = torch.linalg.vecdot(factors.left, products).view(-1, layout.rank).sum(dim=1)
    return matrices + factors.whole @ rest


def grams(layout: Layout, factors: Factors) -> Tensor:
    """Inner products between factored directions, of this process's part: shape ``(matrices + 1, q, q)``, float64, on the CPU.

    Args:
        layout: Which parameters are factored.
        factors: The directions.

    Returns:
        A summand for each matrix, and one for all parameters that are kept whole.
    """
    count = len(factors.whole)
    parts = [square(factors.whole)]
    for matrix in layout.matrices:
        product = square(factors.left[:, matrix.left]) * square(factors.right[:, matrix.right])
        parts.append(product.view(count, layout.rank, count, layout.rank).sum(dim=(1, 3)))
    return torch.stack(parts).cpu()


def normalised(layout: Layout, factors: Factors) -> Factors:
    """Factored directions scaled to unit norm, in place.

    Args:
        layout: Which parameters are factored.
        factors: The directions, none of them zero.

    Returns:
        What was given.
    """
    scales = layout.shards.total(grams(layout, factors).sum(dim=0)).diagonal().rsqrt().to(factors.left)
    factors.left.mul_(scales.repeat_interleave(layout.rank)[:, None])
    factors.whole.mul_(scales[:, None])
    return factors
