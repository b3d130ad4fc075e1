"""An excursion: move weights along a direction in place, and bring the weights back bit for bit without a copy."""

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
"""Numbers that are moved at a time: few enough to stay in a CPU's cache, and for what a move takes on the side to be little."""

_T = TypeVar("_T")


class Excursion:
    """Moves weights along one direction after another, and brings them back.

    What it takes to come back is about a hundredth of the weights' memory: see
    :mod:`lightning_vamo.core.gradient.remainder`. The directions are regenerated each time that they are gone along.

    Args:
        parameters: The live parameters, which are moved in place. Of sharded ones, the part of this process is.
        directions: The directions, drawn for these parameters.

    Raises:
        InvalidArgumentError: If a parameter's type is not one that can be moved and brought back.
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
        """Whether the weights are elsewhere than at the beginning."""
        return self._at is not None

    @property
    def bytes(self) -> int:
        """Bytes that the way back takes."""
        return sum(moved.bytes for moved in self._moved if moved is not None)

    def go(self, index: int, distance: float | Sequence[float]) -> None:
        r"""Set the weights to :math:`x + s u_j`, where :math:`x` are the weights at the beginning.

        Args:
            index: Which direction.
            distance: The step :math:`s` along it, in units of parameter norm; or one for each parameter.
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
            then: Called for each piece that is back, in the same pass: with the number of its parameter, the piece, and the
                direction's part for it.
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
        """Let the weights stay at the present point: it is the beginning from now on."""
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
        parameters: What this process holds of the parameters.
        sizes: Sizes of the direction's parts, parameter by parameter.
        parts: The parts.

    Yields:
        The number of a parameter; some of its numbers, flat, which can be written to; and the direction's for these.
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
    for _ in drawn:  # lets the iterator end
        pass


def ahead(items: Iterator[_T], parameters: Sequence[Tensor]) -> Iterator[_T]:
    """Draw the next item in a thread while the caller uses the present item, for large parameters on a CPU with idle cores.

    Torch draws random numbers with one thread, and that takes as long as all the rest.

    Args:
        items: Draws the items.
        parameters: The parameters that they are for.

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
