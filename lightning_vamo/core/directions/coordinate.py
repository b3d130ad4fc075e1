"""Coordinate directions: a probe moves one number of the weights."""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.random.streams import CHUNK
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import first_number, local, shard_group
from lightning_vamo.core.small import Small, small, tensor_of
from lightning_vamo.errors import InvalidArgumentError


class CoordinateDirections(Directions):
    r"""Distinct coordinate axes, chosen uniformly: :math:`u_j = e_{i_j}`.

    The axes are orthonormal. Only their ``q`` indices are stored, so there is no choice of storage.

    With as many probes as coordinates, the estimate is the gradient by finite differences. If that is too many for a step,
    ``blocks`` cuts the coordinates into blocks of neighbours, and each draw takes one block. With as many probes as a block has
    coordinates, the estimate is the block's part of the gradient, times the number of blocks.

    Args:
        blocks: Number of blocks of neighbours that the coordinates are cut into, at least 1. All axes of a draw are from one
            block, so there can be at most as many axes as the smallest block has coordinates.

    Raises:
        InvalidArgumentError: If the number of blocks is not allowed.

    References:
        Chen et al., "DeepZero", arXiv:2310.02025, which estimates the gradient along the coordinates of a mask: see
        :class:`~lightning_vamo.core.directions.MaskedDirections`.

    Example:
        >>> import torch
        >>> directions = CoordinateDirections().draw([torch.zeros(2), torch.zeros(1)], 3, torch.Generator().manual_seed(0))
        >>> directions.dense([torch.zeros(2), torch.zeros(1)]).sum(dim=0)
        tensor([1., 1., 1.])
    """

    orthonormal = True

    def __init__(self, blocks: int = 1) -> None:
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
            raise InvalidArgumentError(f"`blocks` must be a whole number >= 1, got {blocks!r}.")
        self.blocks = blocks

    def check_count(self, count: int, dimension: int) -> None:
        """See :meth:`Directions.check_count`; there are at most as many directions as the smallest block has coordinates."""
        super().check_count(count, dimension)
        if count > dimension // self.blocks:
            raise InvalidArgumentError(
                f"CoordinateDirections(blocks={self.blocks}) cannot draw {count} axes from one block, since {dimension}"
                f" trainable parameters give blocks of {dimension // self.blocks} coordinates: use at most"
                f" {dimension // self.blocks} probes, or fewer blocks."
            )

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        ends = list(itertools.accumulate(parameter.numel() for parameter in parameters))
        first, last = self._block(ends[-1], generator)
        # Floyd's sampling without replacement: O(q) memory, where a permutation would take O(d).
        chosen: dict[int, None] = {}
        for bound in range(last - first - count, last - first):
            index = int(torch.randint(bound + 1, (), generator=generator, device="cpu"))
            chosen[bound if index in chosen else index] = None
        places = []
        for index in (first + offset for offset in chosen):
            tensor = bisect.bisect_right(ends, index)
            places.append((tensor, index - (ends[tensor - 1] if tensor else 0)))
        return _Axes(places, ends[-1], parameters)

    def _block(self, dimension: int, generator: torch.Generator) -> tuple[int, int]:
        """The bounds of a random block: its first coordinate, and the first coordinate after it. Chances follow the sizes."""
        if self.blocks == 1:
            return 0, dimension
        bounds = [block * dimension // self.blocks for block in range(self.blocks + 1)]
        block = bisect.bisect_right(bounds, int(torch.randint(dimension, (), generator=generator, device="cpu"))) - 1
        return bounds[block], bounds[block + 1]


class _Axes(ProbeDirections):
    """The axes at ``places``, which are pairs of a parameter's position and a flat index in the parameter."""

    def __init__(self, places: Sequence[tuple[int, int]], dimension: int, parameters: Sequence[Tensor]) -> None:
        self.count = len(places)
        self.dimension = dimension
        self.shards = shard_group(parameters)
        first = [first_number(parameter) for parameter in parameters]
        held = [local(parameter).numel() for parameter in parameters]
        shifted = enumerate((tensor, place - first[tensor]) for tensor, place in places)
        # By direction, the places within this process's part of the parameters, counted from the part's beginning.
        self._places = {index: place for index, place in shifted if 0 <= place[1] < held[place[0]]}
        like = local(parameters[0])
        self._zeros = torch.zeros(self.count, dtype=at_least_float32(like.dtype), device=like.device)
        self._held = held
        self._kinds = [(at_least_float32(parameter.dtype), local(parameter).device) for parameter in parameters]

    def sizes(self) -> list[list[int]]:
        """See :meth:`ProbeDirections.sizes`."""
        return [[min(CHUNK, size - start) for start in range(0, size, CHUNK)] for size in self._held]

    def parts(self, index: int) -> Iterator[Tensor | None]:
        """See :meth:`ProbeDirections.parts`."""
        tensor, place = self._places.get(index, (-1, 0))
        for number, (sizes, (dtype, device)) in enumerate(zip(self.sizes(), self._kinds, strict=True)):
            for start, size in zip(itertools.count(0, CHUNK), sizes, strict=False):
                part = None
                if number == tensor and start <= place < start + size:
                    part = torch.zeros(size, dtype=dtype, device=device)
                    part[place - start] = 1
                yield part

    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        for target, origin in zip(targets, origins, strict=True):
            local(target).copy_(local(origin))
        if index in self._places:
            tensor, place = self._places[index]
            self._at(targets[tensor], place).add_(distance)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        return self.shards.total(self._project(vectors))

    def _project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        total = self._zeros.clone()
        for index, (tensor, place) in self._places.items():
            vector = vectors[tensor]
            if vector is not None:
                total[index] = self._at(vector, place)
        return total

    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        along, weights = self._project(vectors).double(), tensor_of(coefficients)
        steps = torch.zeros_like(along)
        present = [local(vector) for vector in vectors if vector is not None]
        squares = sum(torch.linalg.vector_norm(vector, dtype=torch.float64) ** 2 for vector in present)
        for index, (tensor, place) in self._places.items():
            vector = vectors[tensor]
            if vector is not None:
                steps[index] = weights[index]
                number = self._at(vector, place)
                number.sub_(weights[index].to(number))
        return small(torch.stack((torch.as_tensor(squares, device=steps.device), along @ steps, steps @ steps)).double())

    @staticmethod
    def _at(tensor: Tensor, place: int) -> Tensor:
        """The number at flat index ``place``, as a view for every memory layout."""
        view = local(tensor)
        for size, stride in zip(view.shape, _strides(view.shape), strict=True):
            view = view.select(0, (place // stride) % size)
        return view


def _strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides of ``shape``."""
    sizes = [*shape[1:], 1] if len(shape) else []
    return list(itertools.accumulate(reversed(sizes), lambda total, size: total * size))[::-1]
