"""Directions whose matrices are products of thin factors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vamo.core.algebra import deflation, inverse_root, square
from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.learned.factors import Factors, Matrix
from lightning_vamo.core.directions.learned.layout import Layout
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
        shares = grams(layout, factors)
        gram = layout.shards.total(shares.sum(dim=0))
        self.whitening = inverse_root(gram)
        self.deflation = deflation(gram).to(layout.device)
        self._on_device = self.whitening.to(layout.device)
        self._grams = shares[1:].to(layout.device)

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
        left = torch.zeros_like(self.factors.left)
        for matrix in self.layout.matrices:
            tensor = self.layout.matrix(matrix, vectors)
            if tensor is not None:
                places, rows = self.layout.rows(matrix, tensor.to(left))
                left[:, places] = (rows @ self.factors.right[:, matrix.right].t()).t()
        return self.whiten(self.shards.total(slopes(self.layout, self.factors, left, self.layout.rest(vectors))))

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`; what is subtracted is never made as a whole."""
        layout, factors = self.layout, self.factors
        weights = self._on_device @ coefficients.to(self._on_device)
        scaled = factors.left * weights.repeat_interleave(layout.rank).to(factors.left)[:, None]
        rest, step = layout.rest(vectors), weights.to(factors.whole) @ factors.whole
        parts = [torch.dot(rest, rest), torch.dot(rest, step)]
        present = [i for i, matrix in enumerate(layout.matrices) if vectors[matrix.position] is not None]
        for index in present:
            parts += self._subtract(layout.matrices[index], vectors, scaled)
        norm = weights @ self._grams[present].sum(dim=0) @ weights
        for whole in layout.wholes:
            vector = vectors[whole.position]
            if vector is not None:
                taken = step[whole.place]
                local(vector).sub_(taken.view(local(vector).shape))
                norm += torch.dot(taken, taken)
        moments = torch.stack(parts).double().view(-1, 2).sum(dim=0)
        return torch.cat((moments, norm[None])).to(coefficients.device)

    def _subtract(self, matrix: Matrix, vectors: Sequence[Tensor | None], scaled: Tensor) -> list[Tensor]:
        """Subtract from one matrix; returns summands of its squared norm before, and of its inner product with the step."""
        held = local(vectors[matrix.position])  # type: ignore[arg-type]
        wide = held.reshape(-1, matrix.columns).to(scaled)
        right = self.factors.right[:, matrix.right].contiguous()
        places, rows = self.layout.rows(matrix, wide)
        flat = rows.reshape(-1)
        moments = [torch.dot(flat, flat), torch.dot((scaled[:, places] @ rows).view(-1), right.view(-1))]
        left = scaled[:, matrix.left]
        if rows is wide:
            wide.addmm_(left.t(), right, alpha=-1)
        else:
            # The directions too are zero in rows whose gradients were while they were learned.
            touched = left.any(dim=0).nonzero()[:, 0]
            wide.index_add_(0, touched, left[:, touched].t() @ right, alpha=-1)
        if wide.data_ptr() != held.data_ptr():
            held.copy_(wide.view(held.shape))
        return moments


def slopes(layout: Layout, factors: Factors, left: Tensor, rest: Tensor) -> Tensor:
    """Inner products of factored directions with a vector, of this process's part.

    Args:
        layout: Which parameters are factored.
        factors: The directions.
        left: Its matrices times the directions' right factors, shaped as their left factors are.
        rest: Its numbers in the parameters that are kept whole.

    Returns:
        Shape ``(q,)``.
    """
    matrices: Tensor = torch.linalg.vecdot(factors.left, left).view(-1, layout.rank).sum(dim=1)
    return matrices + factors.whole @ rest


def grams(layout: Layout, factors: Factors) -> Tensor:
    """Inner products between factored directions, of this process's part: shape ``(matrices + 1, q, q)``, float64, on the CPU.

    Args:
        layout: Which parameters are factored.
        factors: The directions.

    Returns:
        A summand for all parameters that are kept whole, then one for each matrix.
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
