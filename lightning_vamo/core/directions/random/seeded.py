"""Random directions that a seed regenerates at every use."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections, moments
from lightning_vamo.core.directions.random.streams import layout_of, pieces, stream_seed
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.core.small import Small, small, tensor_of


class RawVectors(Protocol):
    """The two methods of a random family that seeded directions need: sample raw coordinates, and mix raw vectors."""

    def sample(self, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Raw coordinates, shape ``(size,)``."""

    def mixing(self, seeded: "SeededDirections") -> Tensor:
        """The matrix that turns raw vectors into directions, shape ``(q, q)``."""


class SeededDirections(ProbeDirections):
    """Directions that are regenerated from a seed at every use.

    Args:
        family: Gives the raw coordinates, and the matrix that mixes raw vectors.
        parameters: Tensors that give the shapes, types, devices and placements.
        count: ``q``, the number of directions.
        seed: The seed of the draw.
    """

    def __init__(self, family: RawVectors, parameters: Sequence[Tensor], count: int, seed: int) -> None:
        self.count = count
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self.shards = shard_group(parameters)
        self._family = family
        self._seed = seed
        self._layout = layout_of(parameters)
        like = local(parameters[0])
        self._device, self._dtype = like.device, at_least_float32(like.dtype)
        self._weights = family.mixing(self)
        self._terms = [[(i, weight) for i, weight in enumerate(row) if weight] for row in self._weights.tolist()]

    @cached_property
    def _mixing(self) -> Tensor:
        """The matrix where gradients are; copied there only if needed, as directions of a single step may not be."""
        return self._weights.to(self._device, non_blocking=True)  # or a step would wait for a GPU

    def sizes(self) -> list[list[int]]:
        """See :meth:`ProbeDirections.sizes`; a part is what this process needs of a chunk."""
        return self._layout.sizes

    def raw(self, index: int) -> Iterator[Tensor]:
        """The raw vector behind direction ``index``, a chunk at a time, in float32 or wider."""
        generators: dict[torch.device, torch.Generator] = {}
        for chunk in (chunk for chunks in self._layout.chunks for chunk in chunks):
            if chunk.device not in generators:
                generators[chunk.device] = torch.Generator(chunk.device)
            seed = stream_seed(self._seed, index * self._layout.streams + chunk.stream)
            generator = generators[chunk.device].manual_seed(seed)
            yield self._family.sample(chunk.size, generator, chunk.dtype)[chunk.part]

    def parts(self, index: int) -> Iterator[Tensor]:
        """See :meth:`ProbeDirections.parts`; the parts are chunks of the random streams."""
        support, weights = zip(*self._terms[index], strict=True)
        if len(support) == 1:
            yield from (torch.mul(part, weights[0]) for part in self.raw(support[0]))
            return
        for parts in _in_step([self.raw(i) for i in support]):
            yield combination(weights, parts)

    def directions(self) -> Iterator[Iterator[Tensor]]:
        """All directions, a chunk at a time: ``q`` tensors in float32 or wider per chunk; each raw number is drawn once."""
        for parts in zip(*map(self.raw, range(self.count)), strict=True):
            yield (combination([weight for _, weight in row], [parts[i] for i, _ in row]) for row in self._terms)

    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        """See :meth:`ProbeDirections.move`."""
        stream = self.parts(index)
        for target, origin, sizes in zip(targets, origins, self.sizes(), strict=True):
            for to, source in zip(pieces(target, sizes), pieces(origin, sizes), strict=True):
                torch.add(source, next(stream).to(source.dtype), alpha=distance, out=to)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        raw = self.shards.total(torch.stack([self._project_raw(index, vectors) for index in range(self.count)]))
        return (self._mixing @ raw).to(self._dtype)

    def _project_raw(self, index: int, vectors: Sequence[Tensor | None]) -> Tensor:
        # In float64, since near q = d the weights of the mixing are large and alternate in sign.
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for piece, part in zip(self._pieces(vectors), self.raw(index), strict=True):
            if piece is not None:
                total += torch.dot(part.double(), piece.double()).to(total.device)
        return total

    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """See :meth:`ProbeDirections.remove_`."""
        weights = self._mixing.T @ tensor_of(coefficients).to(self._mixing, non_blocking=True)
        total = torch.zeros(3, dtype=torch.float64, device=weights.device)
        streams = _in_step([self.raw(index) for index in range(self.count)])
        for piece, parts in zip(self._pieces(vectors), streams, strict=True):
            if piece is None:
                for _ in parts:  # drawn all the same, so that the streams stay in step
                    pass
            else:
                step = combination(weights.to(piece.device), parts)
                total += moments(piece, step).to(total.device)
                piece.sub_(step)
        return small(total)

    def _pieces(self, vectors: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """The chunks of ``vectors``, in step with :meth:`raw`; ``None`` for each chunk of a missing vector."""
        for vector, sizes in zip(vectors, self.sizes(), strict=True):
            yield from [None] * len(sizes) if vector is None else pieces(vector, sizes)


def combination(weights: Sequence[float] | Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The weighted sum of ``parts``; several parts are summed in float64, since weights near q = d are large and alternate.

    Args:
        weights: A weight for each part, as numbers or as a tensor; a tensor on a GPU is not waited for.
        parts: Tensors of the same shape, at least one; they need not exist at the same time.

    Returns:
        A new tensor of the parts' shape and type.
    """
    remaining = iter(parts)
    part = next(remaining)
    if len(weights) == 1:
        return torch.mul(part, weights[0])
    dtype = part.dtype
    total = part.double() * weights[0]
    for weight, part in zip(weights[1:], remaining, strict=True):
        if isinstance(weight, Tensor) and weight.device.type != "cpu":
            total += part.double() * weight
        else:
            total.add_(part, alpha=float(weight))
    return total.to(dtype)


def _in_step(streams: Sequence[Iterator[Tensor]]) -> Iterator[Iterator[Tensor]]:
    """Like ``zip``, but lazy: each group must be read to its end before the next group."""
    first, *others = streams
    for part in first:
        yield itertools.chain((part,), map(next, others))
