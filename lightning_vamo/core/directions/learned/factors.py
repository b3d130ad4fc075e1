"""Factored directions as tensors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Matrix:
    """A parameter whose part of a direction is kept as a product of thin factors.

    Attributes:
        position: Its place among the parameters.
        left: Where its rows, those in this process, lie in the left factors of all matrices.
        right: Where its columns lie in the right factors.
        rows: How many rows it has in all processes.
        first: The first row in this process.
    """

    position: int
    left: slice
    right: slice
    rows: int
    first: int

    @property
    def columns(self) -> int:
        """How many columns it has."""
        return int(self.right.stop - self.right.start)


@dataclass(frozen=True)
class Whole:
    """A parameter whose part of a direction is kept as it is, since factors would take as much.

    Attributes:
        position: Its place among the parameters.
        place: Where its numbers, those in this process, lie among those of all such parameters.
        numbers: How many numbers it has in all processes.
        first: The first number in this process.
    """

    position: int
    place: slice
    numbers: int
    first: int


@dataclass
class Factors:
    r"""Something for each of ``q`` directions in factored form: :math:`A_j B_j^\top` per matrix, all numbers of the rest.

    Of directions, the columns of :math:`B_j` have norm one.

    Attributes:
        left: Shape ``(q * rank, all rows)``, the columns of each :math:`A_j` below each other.
        right: Shape ``(q * rank, all columns)``.
        whole: Shape ``(q, numbers of the rest)``.
    """

    left: Tensor
    right: Tensor
    whole: Tensor

    def leading(self, count: int, rank: int) -> "Factors":
        """Copies of the first ``count``."""
        return Factors(self.left[: count * rank].clone(), self.right[: count * rank].clone(), self.whole[:count].clone())

    def followed_by(self, others: "Factors") -> "Factors":
        """These, then ``others``."""
        parts = zip(self.tensors(), others.tensors(), strict=True)
        return Factors(*(torch.cat(pair) for pair in parts))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All there is."""
        return self.left, self.right, self.whole
