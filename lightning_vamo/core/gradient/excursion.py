"""An excursion: move weights along a direction in place, and bring the weights back bit for bit, without a copy."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.random.streams import pieces
from lightning_vamo.core.gradient.moved import Moved, check_movable
from lightning_vamo.core.sharding import local

BLOCK = 2**17
"""How many numbers are moved at a time: few enough to stay in a CPU's cache, and to need little memory for a move."""

_T = TypeVar("_T")


class Excursion:
    """Moves weights along one direction after another, and brings the weights back.

    The way back takes about a hundredth of the weights' memory: see :mod:`lightning_vamo.core.gradient.remainder`. The numbers
    of a direction are drawn again for each move.

    Args:
        parameters: The live parameters, which are moved in place; of a sharded parameter, the part of this process.
        directions: The directions, drawn for these parameters.

    Raises:
        InvalidArgumentError: If a parameter has a type that cannot be moved and brought back.
        UnsupportedError: If the directions have no parts.
    """

    def __init__(self, parameters: Sequence[Tensor], directions: ProbeDirections) -> None:
        self._parameters = [local(parameter) for parameter in parameters]
        for parameter in self._parameters:
            check_movable(parameter.dtype)
        self._directions = directions
        self._sizes = directions.sizes()
        self._moved: list[Moved | None] = []
        self._at: tuple[int, Sequence[float]] | None = None

    @property
    def away(self) -> bool:
        """Whether the weights are away from their beginning."""
        return self._at is not None

    @property
    def bytes(self) -> int:
        """The memory that the way back takes, in bytes."""
        return sum(moved.bytes for moved in self._moved if moved is not None)

    def go(self, index: int, distance: float | Sequence[float]) -> None:
        r"""Set the weights to :math:`x + s u_j`, where :math:`x` are the weights at the beginning.

        Args:
            index: Number of the direction.
            distance: The step :math:`s` along the direction, in units of parameter norm, for all parameters or for each.
        """
        distances = [distance] * len(self._parameters) if isinstance(distance, (int, float)) else list(distance)
        opposite = [-s for s in distances]
        if self._at == (index, opposite):
            self._walk(index, _turned)
        else:
            self.back()
            self._walk(index, lambda number, piece, part, _: None if part is None else Moved(piece, part, distances[number]))
        self._at = index, distances

    def back(self, then: Callable[[int, Tensor, Tensor | None], object] | None = None) -> None:
        """Bring the weights back to :math:`x`, bit for bit.

        Args:
            then: Called for each piece that is back, in the same pass, with the number of the piece's parameter, the piece, and
                the direction's part for the piece.
        """
        if self._at is None:
            return

        def home(number: int, piece: Tensor, part: Tensor | None, moved: Moved | None) -> None:
            if moved is not None and part is not None:
                moved.back(piece, part)
            if then is not None:
                then(number, piece, part)

        index, _ = self._at
        self._walk(index, home)
        self._at, self._moved = None, []

    def stay(self) -> None:
        """Let the weights stay at the present point, which is their beginning from now on."""
        self._at, self._moved = None, []

    def _walk(self, index: int, visit: Callable[[int, Tensor, Tensor | None, Moved | None], Moved | None]) -> None:
        before = iter(self._moved) if self._moved else iter(())
        after: list[Moved | None] = []
        for number, piece, part in along(self._parameters, self._sizes, self._directions.parts(index)):
            after.append(visit(number, piece, part, next(before, None)))
        self._moved = after


def _turned(number: int, piece: Tensor, part: Tensor | None, moved: Moved | None) -> Moved | None:
    if moved is not None and part is not None:
        moved.turn(piece, part)
    return moved


def along(
    parameters: Sequence[Tensor], sizes: Sequence[list[int]], parts: Iterator[Tensor | None]
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The blocks of the parameters, with the parts of a direction.

    Args:
        parameters: The part of each parameter that this process holds.
        sizes: Sizes of the direction's parts, parameter by parameter.
        parts: The parts of the direction.

    Yields:
        The position of a parameter; a flat block of its numbers, which can be written to; and the direction's part for the
        block.
    """
    drawn = ahead(parts, parameters)
    for number, (parameter, own) in enumerate(zip(parameters, sizes, strict=True)):
        for piece in pieces(parameter, own):
            part = next(drawn)
            if part is None:
                yield number, piece, None
                continue
            for block, numbers in zip(torch.split(piece, BLOCK), torch.split(part, BLOCK), strict=True):
                yield number, block, numbers
    for _ in drawn:  # so that the iterator reaches its end
        pass


def ahead(items: Iterator[_T], parameters: Sequence[Tensor]) -> Iterator[_T]:
    """Draw the next item in a thread, while the caller uses the present item.

    This helps for large parameters on a CPU with idle cores: torch draws random numbers with one thread, which takes as long as
    the rest of the work. For other parameters, the items are drawn without a thread.

    Args:
        items: Draws the items.
        parameters: The parameters that the items are for.

    Yields:
        The items.
    """
    large = sum(parameter.numel() for parameter in parameters if parameter.device.type == "cpu") >= 4 * BLOCK
    if not large or torch.get_num_threads() == 1:
        yield from items
        return
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(next, items, end)
        while (item := waiting.result()) is not end:
            waiting = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # `end` was ruled out
