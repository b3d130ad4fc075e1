"""The tensors of directions in factored form."""

from functools import cached_property

import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.layout import Layout
from lightning_vamo.core.small import Small, array


class Factors:
    r"""The tensors of ``q`` factored directions: :math:`A_j B_j^\top` for each matrix, all numbers for other parameters.

    In a direction, the columns of :math:`B_j` have norm one.

    Args:
        layout: Which parameters are factored.
        thin: The columns of all :math:`A_j`, the matrices one below the other, then the columns of all :math:`B_j`, shape
            ``(q * rank, all rows + all columns)``.
        whole: The numbers of the parameters that are not factored, shape ``(q, numbers)``, or ``(numbers,)`` if all directions
            share them.
    """

    def __init__(self, layout: Layout, thin: Tensor, whole: Tensor) -> None:
        self.layout = layout
        self.thin = thin
        self.whole = whole
        rows, columns, _ = layout.sizes
        self.left = thin.narrow(1, 0, rows)
        """The part of ``thin`` that holds the :math:`A_j`."""
        self.right = thin.narrow(1, rows, columns)
        """The part of ``thin`` that holds the :math:`B_j`."""

    @cached_property
    def arrays(self) -> tuple[Small, Small]:
        """``thin`` and ``whole`` for small arithmetic, in their own type."""
        return array(self.thin), array(self.whole)

    @cached_property
    def left_array(self) -> Small:
        """``left`` for small arithmetic, in its own type."""
        return array(self.left)

    @cached_property
    def right_array(self) -> Small:
        """``right`` for small arithmetic, in its own type."""
        return array(self.right)

    @cached_property
    def lefts(self) -> list[Tensor]:
        """The part of ``left`` that belongs to each matrix."""
        return list(torch.split(self.left, [matrix.held for matrix in self.layout.matrices], dim=1))

    @cached_property
    def rights(self) -> list[Tensor]:
        """The part of ``right`` that belongs to each matrix."""
        return list(torch.split(self.right, [matrix.columns for matrix in self.layout.matrices], dim=1))

    @cached_property
    def left_columns(self) -> list[Tensor]:
        """The parts of :attr:`lefts` with the directions, or their outer products, as columns."""
        return [left.t() for left in self.lefts]

    @cached_property
    def right_columns(self) -> list[Tensor]:
        """The parts of :attr:`rights` with the directions, or their outer products, as columns."""
        return [right.t() for right in self.rights]

    @cached_property
    def wholes(self) -> list[list[Tensor]]:
        """The part of ``whole`` that belongs to each parameter, in the parameter's shape, for each direction."""
        return [self.shaped(row) for row in self.whole.unbind()]

    def shaped(self, numbers: Tensor) -> list[Tensor]:
        """The numbers of all parameters that are not factored, parameter by parameter, as views."""
        parts = torch.split(numbers, [whole.held for whole in self.layout.wholes])
        return [part.view(whole.shape) for part, whole in zip(parts, self.layout.wholes, strict=True)]

    @property
    def count(self) -> int:
        """``q``, the number of directions."""
        return len(self.thin) // self.layout.rank

    def leading(self, count: int) -> "Factors":
        """The first ``count`` directions; they share memory with these directions."""
        return Factors(self.layout, self.thin.narrow(0, 0, count * self.layout.rank), self.whole.narrow(0, 0, count))

    def copy(self) -> "Factors":
        """A copy that shares no memory."""
        return Factors(self.layout, self.thin.clone(), self.whole.clone())

    def followed_by(self, others: "Factors") -> "Factors":
        """These directions followed by ``others``."""
        return Factors(self.layout, torch.cat((self.thin, others.thin)), torch.cat((self.whole, others.whole)))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """All tensors of the directions."""
        return self.thin, self.whole


def zeros(layout: Layout, count: int) -> Factors:
    """Zeros for ``count`` directions."""
    rows, columns, numbers = layout.sizes
    return Factors(layout, layout.empty(count * layout.rank, rows + columns).zero_(), layout.empty(count, numbers).zero_())


def random(layout: Layout, count: int, generator: torch.Generator) -> Factors:
    """Random directions with independent normal factors, not of unit norm; a tensor's weight follows its number of entries.

    Args:
        layout: Which parameters are factored.
        count: Number of directions.
        generator: CPU generator; every process draws all numbers, and keeps its part.

    Returns:
        The directions; :func:`~lightning_vamo.core.directions.learned.grams.normalised` scales them.
    """

    def normal(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")

    factors = zeros(layout, count)
    for matrix, left, right in zip(layout.matrices, factors.lefts, factors.rights, strict=True):
        numbers = normal(count * layout.rank, matrix.rows) * (matrix.columns / layout.rank) ** 0.5
        left.copy_(numbers.narrow(1, matrix.first, matrix.held))
        numbers = normal(count * layout.rank, matrix.columns)
        right.copy_(numbers / numbers.norm(dim=1, keepdim=True))
    parts = torch.split(factors.whole, [whole.held for whole in layout.wholes], dim=1)
    for whole, part in zip(layout.wholes, parts, strict=True):
        part.copy_(normal(count, whole.numbers).narrow(1, whole.first, whole.held))
    return factors
