"""An excursion: move weights along a direction in place, and bring the weights back bit for bit, without a copy."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
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

    Each block is moved in a copy of the block, which then replaces the block. So if an exception interrupts a move, such as a
    keyboard interrupt or a lack of memory, :meth:`back` still brings all weights back.

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
        # By number of the block; blocks that are at their beginning have none.
        self._moved: dict[int, Moved] = {}
        # The direction, and how far along it each parameter is; no distances while only some blocks are there.
        self._at: tuple[int, Sequence[float]] | None = None
        self._due: _Due | None = None

    @property
    def away(self) -> bool:
        """Whether the weights are away from their beginning."""
        return self._at is not None

    @property
    def bytes(self) -> int:
        """The memory that the way back takes, in bytes."""
        return sum(moved.bytes for moved in self._moved.values())

    def go(self, index: int, distance: float | Sequence[float]) -> None:
        r"""Set the weights to :math:`x + s u_j`, where :math:`x` are the weights at the beginning.

        Args:
            index: Number of the direction.
            distance: The step :math:`s` along the direction, in units of parameter norm, for all parameters or for each.
        """
        distances = [distance] * len(self._parameters) if isinstance(distance, (int, float)) else list(distance)
        if self._at == (index, [-s for s in distances]):
            visit: _Visit = _turned
        else:
            self.back()
            self._moved = {}

            def visit(number: int, piece: Tensor, part: Tensor | None, moved: Moved | None) -> Moved | None:
                return None if part is None else Moved(piece, part, distances[number])

        self._at = index, []
        self._walk(index, visit)
        self._at = index, distances

    def back(self, then: Callable[[int, Tensor, Tensor | None], object] | None = None) -> None:
        """Bring the weights back to :math:`x`, bit for bit.

        Args:
            then: Called for each piece that is back, in the same pass, with the number of the piece's parameter, the piece, and
                the direction's part for the piece. If an exception interrupts the pass, a further call of this method brings
                back the pieces that ``then`` has not changed yet.
        """
        if self._at is None:
            return

        def home(number: int, piece: Tensor, part: Tensor | None, moved: Moved | None) -> None:
            if moved is not None and part is not None:
                moved.back(piece, part)
            if then is not None:
                then(number, piece, part)

        index, _ = self._at
        self._settle()
        self._at = index, []
        self._walk(index, home, still=then is None)
        self.stay()

    def stay(self) -> None:
        """Let the weights stay at the present point, which is their beginning from now on."""
        self._at = None
        self._moved = {}

    def _walk(self, index: int, visit: "_Visit", *, still: bool = True) -> None:
        """Visit copies of all blocks, and let the copies replace the blocks.

        Args:
            index: Number of the direction.
            visit: Changes a copy of a block.
            still: Whether blocks without a part do not change.
        """
        drawn = ahead(self._directions.parts(index), self._parameters)
        place = 0
        for number, (parameter, sizes) in enumerate(zip(self._parameters, self._sizes, strict=True)):
            flat = parameter.contiguous().view(-1)
            # The blocks of a parameter without a flat view are written back together.
            whole = None if parameter.is_contiguous() else flat.view_as(parameter)
            records: dict[int, Moved | None] = {}
            for block, part in blocks(flat, sizes, drawn):
                before = self._moved.get(place)
                if part is not None or not still:
                    piece = block.clone() if whole is None else block
                    records[place] = visit(number, piece, part, before)
                    if whole is None:
                        self._replace(block, piece, records)
                        records = {}
                place += 1
            if whole is not None:
                self._replace(parameter, whole, records)
        for _ in drawn:  # so that the iterator reaches its end
            pass

    def _replace(self, target: Tensor, numbers: Tensor, records: dict[int, Moved | None]) -> None:
        self._due = target, numbers, records
        self._settle()

    def _settle(self) -> None:
        """Carry out the replacement that is due; the result is the same if a part of it has been carried out before."""
        if self._due is None:
            return
        target, numbers, records = self._due
        target.copy_(numbers)
        for place, moved in records.items():
            if moved is None:
                self._moved.pop(place, None)
            else:
                self._moved[place] = moved
        self._due = None


# A tensor to write to, its new numbers, and the new records of the blocks in it.
_Due = tuple[Tensor, Tensor, dict[int, Moved | None]]
# Changes a block, from the number of its parameter, the block, the direction's part and the block's record; the new record.
_Visit = Callable[[int, Tensor, Tensor | None, Moved | None], Moved | None]


def _turned(number: int, piece: Tensor, part: Tensor | None, moved: Moved | None) -> Moved | None:
    if moved is None or part is None:
        return moved
    moved = copy(moved)  # the present record remains, in case of an interruption
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
        for flat in pieces(parameter, parameter.numel()):
            yield from ((number, block, part) for block, part in blocks(flat, own, drawn))
    for _ in drawn:  # so that the iterator reaches its end
        pass


def blocks(flat: Tensor, sizes: list[int], parts: Iterator[Tensor | None]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The blocks of a flat tensor, with the parts of a direction.

    Args:
        flat: The numbers of a parameter.
        sizes: Sizes of the parameter's parts.
        parts: The parts of the direction; those of the parameter are taken.

    Yields:
        A view of a block, and the direction's part for the block; None stands for zeros.
    """
    for piece in torch.split(flat, sizes):
        part = next(parts)
        if part is None:
            yield piece, None
        else:
            yield from zip(torch.split(piece, BLOCK), torch.split(part, BLOCK), strict=True)


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
