r"""The rounding errors of weights that are moved in place, kept so that the way back is exact.

Weights that are moved by a step :math:`s` and then by :math:`-s` do not come back exactly: :math:`x + s` is rounded, and if its
exponent is larger than that of :math:`x`, the last bits of :math:`x` are lost. After a thousand perturbations the weights have
drifted. A copy of the weights would bring them back, but takes as much memory as the model.

Far less memory is enough. If the exponent did not rise, the rounding of :math:`y = \operatorname{fl}(x + s)` lost at most half
a unit in the last place of :math:`x`, so :math:`\operatorname{fl}(y - s)` is :math:`x` again, except for ties. A weight is
*risky* if the exponent of :math:`y` is above that of :math:`\operatorname{fl}(y - s)`, which the way back can tell from
:math:`y` and :math:`s`. Only risky weights need memory: the difference between the bit patterns of :math:`x` and
:math:`\operatorname{fl}(y - s)`, which is 0, 1 or -1 for nearly all risky weights and takes two bits. The other differences,
and ties among the other weights, are listed. If the list would take more memory than the weights, the weights are copied.

Nothing here is approximate: each operation is one addition that IEEE arithmetic rounds correctly, so both ways compute the same
numbers for all bit patterns of the weights.
"""

import numpy as np
import torch
from torch import Tensor

MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23, torch.float64: 52}
"""The types that weights may have, and the number of stored bits of their fraction."""

_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}

# The bits of the exponent; infinity has exactly these bits set.
_EXPONENT = {
    torch.bfloat16: 0x7F80,
    torch.float16: 0x7C00,
    torch.float32: 0x7F800000,
    torch.float64: 0x7FF0000000000000,
}

_OTHER = 3
"""The code of a risky weight whose difference is not -1, 0 or 1 and is listed; otherwise the code is the difference plus 1."""


class Remainder:
    """The bits that a moved piece of the weights needs to come back exactly.

    Args:
        piece: The numbers, a flat tensor of a type in ``MANTISSA``, which is moved.
        step: The step of each number, of the same shape, in a type at least as wide.
    """

    def __init__(self, piece: Tensor, step: Tensor) -> None:
        there = (piece + step).to(piece.dtype)
        back = _bits((there - step).to(piece.dtype))
        risky, expected = _risky(_bits(there), back, piece.dtype)
        bits = _bits(piece)
        here = _take(bits, risky)
        lost = here - expected
        other = (lost > 1) | (lost < -1)
        self._codes = _packed((lost + 1).masked_fill_(other, _OTHER))
        self._others = _narrow(lost[other])
        _put(back, risky, here)
        places = _where_different(back, bits)
        self._places, self._strays = places.to(torch.int32), bits[places]
        self._copy = piece.clone() if self.bytes >= piece.nbytes else None
        if self._copy is not None:
            self._codes = self._others = self._places = self._strays = lost[:0]
        piece.copy_(there)

    @property
    def bytes(self) -> int:
        """The memory that the remainder takes, in bytes."""
        copied = getattr(self, "_copy", None)
        kept = (self._codes, self._others, self._places, self._strays)
        return sum(part.nbytes for part in kept) + (0 if copied is None else copied.nbytes)

    def undo(self, piece: Tensor, step: Tensor) -> None:
        """Move a piece back, bit for bit.

        Args:
            piece: The moved numbers; afterwards they are as before the move.
            step: The same step, bit for bit.
        """
        if self._copy is not None:
            piece.copy_(self._copy)
            return
        back = _bits((piece - step).to(piece.dtype))
        risky, expected = _risky(_bits(piece), back, piece.dtype)
        codes = _unpacked(self._codes, len(risky))
        lost = codes.to(back.dtype).sub_(1)
        if len(self._others):
            lost[codes == _OTHER] = self._others.to(lost.dtype)
        _put(back, risky, expected + lost)
        if len(self._places):
            back[self._places.long()] = self._strays
        _bits(piece).copy_(back)


def _bits(numbers: Tensor) -> Tensor:
    return numbers.view(_WHOLE[numbers.element_size()])


def _risky(there: Tensor, back: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The risky weights, and the bits that they most likely had before the move.

    The likely bits are those that come back; or the bits of zero, if a number comes back that is nearly all rounding error.

    Returns:
        The places of the risky weights, and their likely bits.
    """
    mask = _EXPONENT[dtype]
    if there.device.type == "cpu":  # on a CPU, NumPy is several times as fast at finding places, at taking and at putting
        risky = torch.from_numpy(np.flatnonzero((there.numpy() & mask) > (back.numpy() & mask)))
    else:
        risky = ((there & mask) > (back & mask)).nonzero().squeeze(1)
    bits = _take(back, risky)
    rounding = (bits & mask) < (_take(there, risky) & mask) - (MANTISSA[dtype] << MANTISSA[dtype])
    return risky, bits.masked_fill_(rounding, 0)


def _where_different(some: Tensor, others: Tensor) -> Tensor:
    if some.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(some.numpy() != others.numpy()))
    return (some != others).nonzero().squeeze(1)


def _take(numbers: Tensor, places: Tensor) -> Tensor:
    if numbers.device.type == "cpu":
        return torch.from_numpy(numbers.numpy()[places.numpy()])
    return numbers[places]


def _put(numbers: Tensor, places: Tensor, values: Tensor) -> None:
    if numbers.device.type == "cpu":
        numbers.numpy()[places.numpy()] = values.numpy()
    else:
        numbers[places] = values


def _narrow(values: Tensor) -> Tensor:
    """Store whole numbers in a byte each if they fit."""
    small = values.to(torch.int8)
    return small if bool((small == values).all()) else values


def _packed(codes: Tensor) -> Tensor:
    """Pack numbers of two bits, four numbers to a byte."""
    padded = codes.new_zeros(len(codes) + -len(codes) % 4, dtype=torch.uint8)
    padded[: len(codes)] = codes
    fours = padded.view(4, -1)
    return fours[0] | fours[1] << 2 | fours[2] << 4 | fours[3] << 6


def _unpacked(packed: Tensor, count: int) -> Tensor:
    return torch.cat([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6])[:count]
