r"""Move a piece of the weights from :math:`x` to :math:`x + s`, to :math:`x - s`, and back to :math:`x`, bit for bit.

Weights of 64 or 32 bits have bits to spare. Their step is rounded to a grid, on which the largest weight of the piece lies too.
The piece itself is rounded once, to :math:`\bar x`, so that the sums :math:`\bar x + s` and :math:`\bar x - s` need no
rounding, and the piece can move by plain additions. A :class:`~lightning_vamo.core.gradient.remainder.Remainder` keeps the bits
that this rounding loses: the piece is moved outward, away from zero, by :math:`|s|`, and back.
Weights of 16 bits are too coarse for this. Their steps have 32 bits, and each way has its own remainder.
A small piece is copied, which takes less time.
"""

import math

import torch
from torch import Tensor

from lightning_vamo.core.gradient.remainder import MANTISSA, Remainder
from lightning_vamo.errors import InvalidArgumentError

SMALL = 2**12
"""Pieces of at most this many numbers are copied; a large model has few such pieces."""

_FEWEST = 64
"""A grid is too coarse for the steps if the longest step has fewer binary places on it than this."""


def check_movable(dtype: torch.dtype) -> None:
    """Refuse weights that cannot be moved and brought back.

    Args:
        dtype: The weights' type.

    Raises:
        InvalidArgumentError: If the type is not float64, float32, float16 or bfloat16.
    """
    if dtype not in MANTISSA:
        raise InvalidArgumentError(f"`parameters` must have one of the types {', '.join(map(str, MANTISSA))}, got {dtype}.")


class Moved:
    """A piece of the weights that is moved along a direction.

    Args:
        piece: The numbers, a flat tensor, which is moved.
        part: The direction's numbers for the piece, of float32 or wider.
        distance: The distance along the direction.
    """

    def __init__(self, piece: Tensor, part: Tensor, distance: float) -> None:
        self._distance = distance
        self._grid = None
        self._copy = piece.clone() if len(piece) <= SMALL else None
        if self._copy is not None:
            self._place(piece, part, self._copy)
            return
        self._grid = _grid(piece, part, distance)
        if self._grid is None:
            self._remainder = Remainder(piece, self._step(piece, part, distance))
            return
        step = self._step(piece, part, distance)
        outward = torch.copysign(step, piece)
        self._remainder = Remainder(piece, outward)
        piece.sub_(outward).add_(step)

    @property
    def bytes(self) -> int:
        """The memory that the way back takes, in bytes."""
        return self._remainder.bytes if self._copy is None else self._copy.nbytes

    def _place(self, piece: Tensor, part: Tensor, origin: Tensor) -> None:
        torch.add(origin, self._step(piece, part, self._distance), out=piece)

    def _step(self, piece: Tensor, part: Tensor, distance: float) -> Tensor:
        if self._grid is None:
            wide = torch.float32 if piece.element_size() == 2 else torch.float64
            return part.to(wide) * distance
        # The sum with a large number is rounded to that number's last place; subtracting it again is exact.
        large = 1.5 * 2.0 ** MANTISSA[piece.dtype] * self._grid
        return (part.to(piece.dtype) * distance).add_(large).sub_(large)

    def turn(self, piece: Tensor, part: Tensor) -> None:
        """Move the piece to the other side: from :math:`x + s` to :math:`x - s`.

        Args:
            piece: The numbers.
            part: As before.
        """
        there, self._distance = self._distance, -self._distance
        if self._copy is not None:
            self._place(piece, part, self._copy)
            return
        step = self._step(piece, part, there)
        if self._grid is None:
            self._remainder.undo(piece, step)
            self._remainder = Remainder(piece, step.neg_())
        else:
            piece.sub_(step).sub_(step)

    def back(self, piece: Tensor, part: Tensor) -> None:
        """Move the piece back to :math:`x`, bit for bit.

        Args:
            piece: The numbers.
            part: As before.
        """
        if self._copy is not None:
            piece.copy_(self._copy)
            return
        step = self._step(piece, part, self._distance)
        if self._grid is not None:
            piece.sub_(step)
            step = torch.copysign(step, piece)
            piece.add_(step)
        self._remainder.undo(piece, step)


def _grid(piece: Tensor, part: Tensor, distance: float) -> float | None:
    """The grid: the last place of the largest number that the piece may reach; None if steps must be finer."""
    if piece.element_size() == 2 or not piece.numel():
        return None
    longest = abs(distance) * _largest(part)
    largest = _largest(piece) + longest
    if not 0 < largest < torch.finfo(piece.dtype).max / 4:
        return None
    # Two places more than the largest number needs: the number may be rounded up, and the sum that rounds a step is larger.
    grid = math.ldexp(1.0, math.frexp(largest)[1] + 1 - MANTISSA[piece.dtype])
    return grid if longest >= _FEWEST * grid else None


def _largest(numbers: Tensor) -> float:
    low, high = torch.aminmax(numbers)
    return float(torch.maximum(-low, high))
