r"""Random directions, kept or regenerated: two storages that give the same numbers.

Every random family draws raw vectors :math:`z_1 \ldots z_q` with independent coordinates and mixes them,
:math:`u_j = \sum_i A_{ji} z_i`, with a small ``q x q`` matrix: a diagonal of scales, or the inverse Cholesky factor that makes
them orthonormal. A raw vector is cut into chunks, each a random stream of its own that a seed determines, so directions need
no memory: *seeded* directions regenerate the streams whenever they are used, *stored* directions keep what the same streams
gave once. A process that holds shards of the parameters generates only the chunks that they lie in.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import Directions, ProbeDirections, inner_products, moments
from lightning_vamo.core.directions.streams import Chunk, chunks_of, pieces, stream_count, stream_seed
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import ShardGroup, local, shard_group
from lightning_vamo.errors import InvalidArgumentError

Storage = Literal["stored", "seeded"]

# Numbers that a correction of stored directions treats at a time on a CPU, so that they are read from memory once.
BLOCK = 2**18


class RandomFamily(Directions):
    """Base of the families that mix raw random vectors.

    Args:
        storage: ``"stored"`` keeps the ``q * d`` numbers, or this process's share of them: fast. ``"seeded"`` keeps a
            seed and draws the numbers again at every use: no memory, more time. Both give the same directions.

    Raises:
        InvalidArgumentError: If ``storage`` is neither.
    """

    def __init__(self, storage: Storage = "stored") -> None:
        if storage not in get_args(Storage):
            raise InvalidArgumentError(f"`storage` must be one of {get_args(Storage)}, got {storage!r}.")
        self.storage = storage

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
        seeded = SeededDirections(self, parameters, count, seed)
        if self.storage == "seeded":
            return seeded
        return StoredDirections(stored_rows(seeded, parameters), seeded.dimension, seeded.shards)

    def sample(self, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Raw coordinates: independent, with mean zero and variance one; standard normal unless a family overrides it.

        Args:
            size: How many.
            generator: Generator on the device that they are wanted on.
            dtype: Floating-point type that they are wanted in.

        Returns:
            Shape ``(size,)``.
        """
        return torch.randn(size, generator=generator, dtype=dtype, device=generator.device)

    @abstractmethod
    def mixing(self, seeded: "SeededDirections") -> Tensor:
        """The matrix ``A`` that turns raw vectors into directions.

        Args:
            seeded: The directions being drawn, whose raw streams can be read; sums over them are to be totalled over
                ``seeded.shards``.

        Returns:
            Shape ``(q, q)``, lower triangular, float64, on the CPU.
        """


class SeededDirections(ProbeDirections):
    """Directions that are regenerated from a seed at every use.

    Args:
        family: Supplies the raw coordinates and how to mix them.
        parameters: Tensors that give the shapes, types, devices and placements.
        count: ``q``, the number of directions.
        seed: The seed of the draw.
    """

    def __init__(self, family: RandomFamily, parameters: Sequence[Tensor], count: int, seed: int) -> None:
        self.count = count
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self.shards = shard_group(parameters)
        self._family = family
        self._seed = seed
        self._streams = 0
        self._chunks: list[list[Chunk]] = []
        for parameter in parameters:
            self._chunks.append(chunks_of(parameter, self._streams))
            self._streams += stream_count(parameter)
        like = local(parameters[0])
        self._device, self._dtype = like.device, at_least_float32(like.dtype)
        self._mixing = family.mixing(self)
        self._terms = [[(i, weight) for i, weight in enumerate(row) if weight] for row in self._mixing.tolist()]

    def sizes(self) -> list[list[int]]:
        """How many numbers of each chunk this process needs, parameter by parameter."""
        return [[chunk.part.stop - chunk.part.start for chunk in chunks] for chunks in self._chunks]

    def raw(self, index: int) -> Iterator[Tensor]:
        """The raw vector behind direction ``index``, a chunk at a time, in float32 or wider."""
        generators: dict[torch.device, torch.Generator] = {}
        for chunk in (chunk for chunks in self._chunks for chunk in chunks):
            if chunk.device not in generators:
                generators[chunk.device] = torch.Generator(chunk.device)
            seed = stream_seed(self._seed, index * self._streams + chunk.stream)
            generator = generators[chunk.device].manual_seed(seed)
            yield self._family.sample(chunk.size, generator, chunk.dtype)[chunk.part]

    def direction(self, index: int) -> Iterator[Tensor]:
        """Direction ``index``, a chunk at a time, in float32 or wider."""
        support, weights = zip(*self._terms[index], strict=True)
        for parts in _in_step([self.raw(i) for i in support]):
            yield combination(weights, parts)

    def directions(self) -> Iterator[Iterator[Tensor]]:
        """All directions, a chunk at a time, each raw number drawn once: ``q`` tensors in float32 or wider per chunk."""
        for parts in zip(*map(self.raw, range(self.count)), strict=True):
            yield (combination([weight for _, weight in row], [parts[i] for i, _ in row]) for row in self._terms)

    def move(self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float) -> None:
        """See :meth:`ProbeDirections.move`."""
        stream = self.direction(index)
        for target, origin, sizes in zip(targets, origins, self.sizes(), strict=True):
            for to, source in zip(pieces(target, sizes), pieces(origin, sizes), strict=True):
                torch.add(source, next(stream).to(source.dtype), alpha=distance, out=to)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        raw = self.shards.total(torch.stack([self._project_raw(index, vectors) for index in range(self.count)]))
        return (self._mixing.to(raw.device) @ raw).to(self._dtype)

    def _project_raw(self, index: int, vectors: Sequence[Tensor | None]) -> Tensor:
        # In float64: near q = d the mixing's weights are large and alternate in sign.
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for piece, part in zip(self._pieces(vectors), self.raw(index), strict=True):
            if piece is not None:
                total += torch.dot(part.double(), piece.double()).to(total.device)
        return total

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`."""
        weights = self._mixing.T.to(coefficients.device) @ coefficients.double()
        total = torch.zeros(3, dtype=torch.float64, device=coefficients.device)
        streams = _in_step([self.raw(index) for index in range(self.count)])
        for piece, parts in zip(self._pieces(vectors), streams, strict=True):
            if piece is None:
                for _ in parts:  # drawn, for the streams to stay in step
                    pass
            else:
                step = combination(weights.to(piece.device), parts)
                total += moments(piece, step).to(total.device)
                piece.sub_(step)
        return total

    def _pieces(self, vectors: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """The chunks of ``vectors``, in step with :meth:`raw`; ``None`` for each chunk of a missing one."""
        for vector, sizes in zip(vectors, self.sizes(), strict=True):
            yield from [None] * len(sizes) if vector is None else pieces(vector, sizes)


class StoredDirections(ProbeDirections):
    """Directions kept in memory, ``q`` rows per parameter or shard of one.

    Args:
        rows: Of each parameter, ``q`` rows of its numbers; see :func:`stored_rows`.
        dimension: ``d``, the number of coordinates in all processes.
        shards: The processes that hold the parameters together.

    Attributes:
        rows: What was given.
    """

    def __init__(self, rows: list[Tensor], dimension: int, shards: ShardGroup) -> None:
        self.count = len(rows[0])
        self.dimension = dimension
        self.shards = shards
        self.rows = rows
        # What a correction subtracts is computed here on a CPU, where allocating as much would take longer than filling it.
        size = min(BLOCK, max(part.shape[1] for part in rows))
        self._buffers = {part.dtype: torch.empty(size, dtype=part.dtype, device="cpu") for part in rows}

    def move(self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float) -> None:
        """See :meth:`ProbeDirections.move`."""
        for target, origin, rows in zip(map(local, targets), map(local, origins), self.rows, strict=True):
            torch.add(origin, rows[index].view(origin.shape), alpha=distance, out=target)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        device, dtype = self.rows[0].device, at_least_float32(self.rows[0].dtype)
        total = torch.zeros(self.count, dtype=dtype, device=device)
        for vector, rows in zip(vectors, self.rows, strict=True):
            if vector is not None:
                total += torch.mv(rows, local(vector).reshape(-1).to(rows.dtype)).to(total)
        return self.shards.total(total)

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`."""
        products: list[Tensor] = []
        for vector, rows in zip(vectors, self.rows, strict=True):
            if vector is not None and rows.numel():
                for flat in pieces(vector, rows.shape[1]):
                    products += self._subtract(flat, rows, coefficients.to(rows))
        if not products:
            return torch.zeros(3, dtype=torch.float64, device=coefficients.device)
        return torch.stack([product.to(coefficients.device) for product in products]).double().view(-1, 3).sum(dim=0)

    def _subtract(self, vector: Tensor, rows: Tensor, weights: Tensor) -> list[Tensor]:
        """Subtract a combination of ``rows`` from a flat vector, in place; returns the inner products, block by block."""
        # A GPU takes all at once: it has the bandwidth, and would wait for the launch of each block's kernels.
        on_cpu = rows.device.type == "cpu"
        blocks: Iterable[tuple[Tensor, Tensor]] = [(vector, rows)]
        if on_cpu and len(vector) > BLOCK:
            blocks = zip(torch.split(vector, BLOCK), torch.split(rows, BLOCK, dim=1), strict=True)
        products = []
        for part, columns in blocks:
            out = self._buffers[rows.dtype][: len(part)] if on_cpu else None
            step = torch.mv(columns.t(), weights, out=out)
            products += inner_products(part, step)
            part.sub_(step)
        return products


def stored_rows(seeded: SeededDirections, parameters: Sequence[Tensor], wide: bool = False) -> list[Tensor]:
    """Directions drawn once, each raw number one time.

    Args:
        seeded: Where the numbers come from.
        parameters: Tensors that give the shapes, types and devices.
        wide: Whether to keep them in float32 or wider, whatever the parameters' type.

    Returns:
        Of each parameter, or shard of one, ``q`` rows of its numbers.
    """
    table = []
    stream = seeded.directions()
    for part, sizes in zip(map(local, parameters), seeded.sizes(), strict=True):
        dtype = at_least_float32(part.dtype) if wide else part.dtype
        rows = torch.empty(seeded.count, part.numel(), dtype=dtype, device=part.device)
        for columns in torch.split(rows, sizes, dim=1):
            for row, numbers in zip(columns, next(stream), strict=True):
                row.copy_(numbers)
        table.append(rows)
    return table


def combination(weights: Sequence[float] | Tensor, parts: Iterable[Tensor]) -> Tensor:
    """The weighted sum of ``parts``; of several, summed in float64, since weights near q = d are large and alternate in sign.

    Args:
        weights: One weight per part: numbers, or a tensor, which on a GPU is not synchronised with.
        parts: Tensors of one shape, as many as weights, at least one; they need not exist at the same time.

    Returns:
        A new tensor of their shape and type.
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
    """What ``zip`` gives, one at a time: each group is to be read to its end before the next one."""
    first, *others = streams
    for part in first:
        yield itertools.chain((part,), map(next, others))
