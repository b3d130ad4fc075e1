"""Coordinate directions."""

import bisect
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import first_number, local, shard_group
from lightning_vamo.core.small import Small, small, tensor_of


class CoordinateDirections(Directions):
    r"""Distinct coordinate axes, chosen uniformly: :math:`u_j = e_{i_j}`.

    They are orthonormal, and their ``q`` indices are all there is to store, so there is no choice of storage.

    Example:
        >>> import torch
        >>> directions = CoordinateDirections().draw([torch.zeros(2), torch.zeros(1)], 3, torch.Generator().manual_seed(0))
        >>> directions.dense([torch.zeros(2), torch.zeros(1)]).sum(dim=0)
        tensor([1., 1., 1.])
    """

    orthonormal = True

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        ends = list(itertools.accumulate(parameter.numel() for parameter in parameters))
        dimension = ends[-1]
        # Floyd's sampling without replacement: O(q) memory, where a permutation would take O(d).
        chosen: dict[int, None] = {}
        for bound in range(dimension - count, dimension):
            index = int(torch.randint(bound + 1, (), generator=generator, device="cpu"))
            chosen[bound if index in chosen else index] = None
        places = []
        for index in chosen:
            tensor = bisect.bisect_right(ends, index)
            places.append((tensor, index - (ends[tensor - 1] if tensor else 0)))
        return _Axes(places, dimension, parameters)


class _Axes(ProbeDirections):
    """The axes at ``places``, pairs of a parameter's position and a flat index in it."""

    def __init__(self, places: Sequence[tuple[int, int]], dimension: int, parameters: Sequence[Tensor]) -> None:
        self.count = len(places)
        self.dimension = dimension
        self.shards = shard_group(parameters)
        first = [first_number(parameter) for parameter in parameters]
        held = [local(parameter).numel() for parameter in parameters]
        shifted = enumerate((tensor, place - first[tensor]) for tensor, place in places)
        # By direction, those of the axes that lie in this process's part of the parameters, counted from its beginning.
        self._places = {index: place for index, place in shifted if 0 <= place[1] < held[place[0]]}
        like = local(parameters[0])
        self._zeros = torch.zeros(self.count, dtype=at_least_float32(like.dtype), device=like.device)

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
        """The one number at flat index ``place``, as a view whatever the layout."""
        view = local(tensor)
        for size, stride in zip(view.shape, _strides(view.shape), strict=True):
            view = view.select(0, (place // stride) % size)
        return view


def _strides(shape: Sequence[int]) -> list[int]:
    """Row-major strides of ``shape``."""
    sizes = [*shape[1:], 1] if len(shape) else []
    return list(itertools.accumulate(reversed(sizes), lambda total, size: total * size))[::-1]
