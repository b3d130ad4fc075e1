"""Directions whose matrices are products of thin factors."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from lightning_vamo.core.algebra import deflation, inverse_root
from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.learned.factors import Factors
from lightning_vamo.core.directions.learned.grams import grams
from lightning_vamo.core.directions.learned.products import Products
from lightning_vamo.core.directions.learned.updates import Update
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.sharding import local
from lightning_vamo.core.small import Small, array, library, placed, product, repeated, small, tensor_of, typed


class FactoredDirections(ProbeDirections):
    r"""Directions of unit norm in factored form, in general not orthogonal.

    The matrix

    .. math:: W = M^{-1/2}, \qquad M_{jk} = u_j^\top u_k

    turns inner products with the directions into coordinates in an orthonormal basis of their span,
    :math:`\sum_k W_{jk} u_k`.

    Args:
        factors: The directions; see :func:`~lightning_vamo.core.directions.learned.grams.normalised`.
    """

    def __init__(self, factors: Factors) -> None:
        layout = factors.layout
        self.count = factors.count
        self.dimension = layout.dimension
        self.shards = layout.shards
        self.layout = layout
        self.factors = factors
        # For each parameter, over all processes, so that a step with missing gradients need not communicate.
        self._grams = layout.shards.total(grams(factors, factors))
        gram = self._grams.sum(dim=0)
        self._whitening = inverse_root(gram)
        self.whitening: Small = placed(small(self._whitening), layout.device)
        """:math:`W`, symmetric, shape ``(q, q)``."""
        self.deflation: Small = placed(small(deflation(gram)), layout.device)
        """The matrix that removes from each direction its part in the span of the directions before, shape ``(q, q)``."""
        self._metrics: dict[tuple[int, ...], Small] = {(): self._metric_of(gram)}  # here, for no step to copy it to a GPU
        self._size = layout.shards.size
        self._updates = [Update(*parts) for parts in zip(factors.lefts, factors.rights, strict=True)]

    @cached_property
    def _products(self) -> Products:
        return Products(self.layout, self.count)

    @cached_property
    def _taken(self) -> "_Taken":
        return _Taken(self.factors)

    def whiten(self, slopes: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.whiten`."""
        return (slopes.double() @ tensor_of(self.whitening).to(slopes.device)).to(slopes.dtype)

    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        """See :meth:`ProbeDirections.move`."""
        layout, rank = self.layout, self.layout.rank
        for matrix, update in zip(layout.matrices, self._updates, strict=True):
            target, origin = local(targets[matrix.position]), local(origins[matrix.position])
            update.move(target, origin, slice(index * rank, (index + 1) * rank), distance, near=near)
        for whole, step in zip(layout.wholes, self.factors.wholes[index], strict=True):
            target, origin = local(targets[whole.position]), local(origins[whole.position])
            torch.add(origin, step.to(origin), alpha=distance, out=target)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        return tensor_of(self.measure(vectors).coordinates, self.layout.dtype)

    def measure(self, vectors: Sequence[Tensor | None]) -> Slopes:
        """See :meth:`ProbeDirections.measure`."""
        along, square = self._look(vectors)
        return self.in_basis(Slopes.of(self.shards.total_small(along), square))

    def in_basis(self, slopes: Slopes) -> Slopes:
        """See :meth:`ProbeDirections.in_basis`."""
        return slopes.turned(self.whitening)

    def _look(self, vectors: Sequence[Tensor | None]) -> tuple[Small, Small]:
        """Inner products with the directions, and the squared norm, for this process's part."""
        self._products.take(vectors, self.factors, right=False)
        return self._products.along(self.factors), self._products.square

    def remove_(
        self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None
    ) -> tuple[Small, Small, Small]:
        """See :meth:`ProbeDirections.remove_`; the subtracted vector is never in memory as a whole."""
        size, weights = self._size, product(self.whitening, coefficients)
        if slopes is None or slopes.square is None:
            along, square = self._look(vectors)
            inner = product(along, weights)
        else:
            square, inner = slopes.square, product(slopes.coordinates, coefficients) / size
        step = product(coefficients, product(self._metric(vectors), coefficients)) / size
        self._subtract(vectors, weights)
        return square, inner, step

    def _subtract(self, vectors: Sequence[Tensor | None], weights: Small) -> None:
        layout, taken = self.layout, self._taken
        taken.combine(self.factors, weights)
        for matrix, update, right in zip(layout.matrices, self._updates, taken.rights, strict=True):
            vector = vectors[matrix.position]
            if vector is not None:
                update.subtract_(local(vector), right)
        present, parts = [], []
        for whole, part in zip(layout.wholes, taken.wholes, strict=True):
            vector = vectors[whole.position]
            if vector is not None:
                present.append(local(vector))
                parts.append(part)
        if len(present) == 1:
            present[0].sub_(parts[0])
        elif present:
            torch._foreach_sub_(present, parts)

    def _metric(self, vectors: Sequence[Tensor | None]) -> Small:
        """The matrix that gives the squared norm of a combination over the tensors that are not None, shape ``(q, q)``."""
        missing = tuple([position for position, vector in enumerate(vectors) if vector is None])
        if missing not in self._metrics:
            present = [position for position in range(len(vectors)) if position not in missing]
            self._metrics[missing] = self._metric_of(self._grams[present].sum(dim=0))
        return self._metrics[missing]

    def _metric_of(self, gram: Tensor) -> Small:
        return placed(small(self._whitening @ gram @ self._whitening), self.layout.device)


class _Taken:
    """The combination of directions that a step subtracts from a gradient, in memory that all steps reuse.

    Args:
        factors: The directions.
    """

    def __init__(self, factors: Factors) -> None:
        layout = factors.layout
        right, whole = torch.empty_like(factors.right), layout.empty(layout.sizes[2])
        self._right_array, self._whole_array = array(right), array(whole)
        self.rights = torch.split(right, [matrix.columns for matrix in layout.matrices], dim=1)
        """The right factors of each matrix, times their coefficients."""
        self.wholes = factors.shaped(whole)
        """The numbers of each parameter that is not factored."""

    def combine(self, factors: Factors, weights: Small) -> None:
        """Compute the combination with the given weights, shape ``(q,)``."""
        right, (_, whole) = self._right_array, factors.arrays
        row, functions = typed(weights, right), library(right)
        functions.multiply(factors.right_array, repeated(row.reshape(-1, 1), factors.layout.rank), out=right)
        product(row, whole, out=self._whole_array)
