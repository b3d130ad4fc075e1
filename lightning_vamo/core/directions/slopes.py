"""The slopes and the norm of a gradient: computed once, so that later steps need not read the gradient again."""

import math

import torch
from torch import Tensor

from lightning_vamo.core.small import Small, all_finite, finite_or_zero, product, small


class Slopes:
    """The slopes of a gradient along directions, and its norm.

    Args:
        coordinates: The inner products with the directions' basis, over all shards, shape ``(q,)``; zeros if an inner product
            is not finite.
        finite: Whether the inner products are finite, shape ``()``. If not, the optimizer will skip the step.
        square: The squared norm, for sharded gradients that of this process's part, shape ``()``; None if it is not known.
    """

    __slots__ = ("coordinates", "finite", "square")

    def __init__(self, coordinates: Small, finite: Small, square: Small | None = None) -> None:
        self.coordinates = coordinates
        self.finite = finite
        self.square = square

    @classmethod
    def of(cls, coordinates: Tensor | Small, square: Small | None = None) -> "Slopes":
        """Slopes from coordinates that may be infinite or NaN.

        Args:
            coordinates: The inner products, shape ``(q,)``.
            square: See the class.

        Returns:
            The slopes.
        """
        values = small(coordinates) if isinstance(coordinates, Tensor) else coordinates
        finite = all_finite(values)
        return cls(values if finite is True else finite_or_zero(values, finite), finite, square)

    @property
    def device(self) -> torch.device:
        """The device of the numbers."""
        return self.coordinates.device if isinstance(self.coordinates, Tensor) else torch.device("cpu")

    @property
    def counted(self) -> Small:
        """1 if the gradient is finite, else 0."""
        return self.finite.double() if isinstance(self.finite, Tensor) else float(self.finite)

    @property
    def square_or_zero(self) -> Small:
        """The squared norm, or zero if the norm or the coordinates are not finite."""
        if isinstance(self.square, Tensor):
            return finite_or_zero(self.square, self.finite & self.square.isfinite())
        return self.square if self.finite and math.isfinite(self.square or 0.0) else 0.0

    def leading(self, count: int) -> "Slopes":
        """The slopes along the first ``count`` directions."""
        if count == len(self.coordinates):
            return self
        if isinstance(self.coordinates, Tensor):
            return Slopes(self.coordinates.narrow(0, 0, count), self.finite, self.square)
        return Slopes(self.coordinates[:count], self.finite, self.square)

    def turned(self, turning: Small) -> "Slopes":
        """Multiply the leading coordinates by a matrix, which has a row for each leading coordinate."""
        return Slopes(product(self.leading(len(turning)).coordinates, turning), self.finite, self.square)

    def times(self, unit: Small) -> "Slopes":
        """The slopes of the gradient times a number."""
        return Slopes(self.coordinates * unit, self.finite, None if self.square is None else self.square * unit**2)
