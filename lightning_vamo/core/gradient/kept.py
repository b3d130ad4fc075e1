"""An excursion of few weights: a copy brings them back, and their direction is drawn once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.sharding import local

FEW = 2**23
"""Weights up to which a copy and a direction are kept: at most 64 MB in float32, less than torch itself takes.

To draw the direction again for each move takes as long as a forward pass of a model with a large vocabulary.
"""


def excursion(parameters: Sequence[Tensor], directions: ProbeDirections) -> Excursion:
    """An excursion of the kind that suits the weights.

    Args:
        parameters: See :class:`~lightning_vamo.core.gradient.excursion.Excursion`.
        directions: Likewise.

    Returns:
        One that keeps a copy if there are few weights, which takes the least time; else one that takes the least memory.

    Raises:
        InvalidArgumentError: If a parameter's type is not one that can be moved and brought back.
        UnsupportedError: If the directions have no parts.
    """
    held = [local(parameter) for parameter in parameters]
    few = sum(part.numel() for part in held) <= FEW and all(part.is_contiguous() for part in held)
    return KeptExcursion(parameters, directions) if few else Excursion(parameters, directions)


class KeptExcursion(Excursion):
    """Moves weights as :class:`~lightning_vamo.core.gradient.excursion.Excursion` does, with a copy and a direction in memory.

    Args:
        parameters: The live parameters, contiguous, which are moved in place.
        directions: The directions, drawn for these parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], directions: ProbeDirections) -> None:
        super().__init__(parameters, directions)
        self._flat = [parameter.view(-1) for parameter in self._parameters]
        self._origin: list[Tensor] = []
        self._drawn: tuple[int, list[Tensor | None]] | None = None

    @property
    def bytes(self) -> int:
        """See :attr:`Excursion.bytes`."""
        return sum(part.nbytes for part in self._origin)

    def go(self, index: int, distance: float | Sequence[float]) -> None:
        """See :meth:`Excursion.go`."""
        if self._at is None:
            self._origin = [part.clone() for part in self._flat]
        else:
            torch._foreach_copy_(self._flat, self._origin)
        distances = [distance] * len(self._flat) if isinstance(distance, (int, float)) else list(distance)
        triples = zip(self._flat, self._direction(index), distances, strict=True)
        moved = [(piece, part, step) for piece, part, step in triples if part is not None]
        self._at = index, distances  # before the move, so that the weights come back even if the move is interrupted
        if moved and all(step == moved[0][2] for _, _, step in moved):
            torch._foreach_add_([piece for piece, _, _ in moved], [part for _, part, _ in moved], alpha=moved[0][2])
        else:
            for piece, part, step in moved:
                piece.add_(part, alpha=step)

    def back(self, then: Callable[[int, Tensor, Tensor | None], object] | None = None) -> None:
        """See :meth:`Excursion.back`; a further call after an interruption undoes what ``then`` has changed."""
        if self._at is None:
            return
        torch._foreach_copy_(self._flat, self._origin)
        if then is not None:
            for number, (piece, part) in enumerate(zip(self._flat, self._direction(self._at[0]), strict=True)):
                then(number, piece, part)
        self.stay()

    def back_and_step(self, weight: float, lr: float) -> bool:
        """Bring the weights back, and take a step of SGD along the direction, in few calls for all parameters together.

        Args:
            weight: The factor of the direction in the gradient.
            lr: The learning rate of all parameters.

        Returns:
            False if the numbers have another type than the weights; then nothing has been done.
        """
        drawn = [] if self._at is None else self._direction(self._at[0])
        parts = [part for part, own in zip(drawn, self._flat, strict=False) if part is not None and part.dtype == own.dtype]
        if len(parts) < len(self._flat):
            return False
        torch._foreach_copy_(self._flat, self._origin)
        torch._foreach_add_(self._flat, torch._foreach_mul(parts, weight), alpha=-lr)
        self.stay()
        return True

    def stay(self) -> None:
        """See :meth:`Excursion.stay`."""
        self._at, self._origin = None, []

    def _direction(self, index: int) -> list[Tensor | None]:
        """A direction's numbers for each parameter; None where it has none."""
        if self._drawn is None or self._drawn[0] != index:
            parts = self._directions.parts(index)
            drawn = [_joined([(size, next(parts)) for size in own]) for own in self._sizes]
            for _ in parts:  # lets the iterator end
                pass
            self._drawn = index, drawn
        return self._drawn[1]


def _joined(parts: Sequence[tuple[int, Tensor | None]]) -> Tensor | None:
    given = [part for _, part in parts if part is not None]
    if not given or len(parts) == 1:
        return given[0] if given else None
    return torch.cat([given[0].new_zeros(size) if part is None else part for size, part in parts])
