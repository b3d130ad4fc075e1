r"""Random directions, kept or regenerated: two storages that give the same numbers.

Every random family draws raw vectors :math:`z_1 \ldots z_q` with independent coordinates and mixes them,
:math:`u_j = \sum_i A_{ji} z_i`, with a small ``q x q`` matrix: a diagonal of scales, or the inverse Cholesky factor that makes
them orthonormal. A raw vector is a stream of chunks that a seed determines, so directions need no memory: *seeded* directions
regenerate the streams whenever they are used, *stored* directions keep what the same streams gave once.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import Directions, ProbeDirections, moments
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.errors import InvalidArgumentError

Storage = Literal["stored", "seeded"]

# Numbers generated at a time. It is part of the definition of the random streams: another value gives other directions.
CHUNK = 2**20


def chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor's numbers as flat chunks that can be written to.

    Args:
        tensor: Any tensor; it changes as its chunks do.

    Yields:
        Tensors of at most ``CHUNK`` numbers, in order. Where the layout has no flat view they are parts of a copy, which is
        written back after the last one: run the iterator to its end.
    """
    flat = tensor.detach().reshape(-1)
    yield from torch.split(flat, CHUNK)
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat.view_as(tensor))


class RandomFamily(Directions):
    """Base of the families that mix raw random vectors.

    Args:
        storage: ``"stored"`` keeps the ``q * d`` numbers: fast. ``"seeded"`` keeps ``q`` seeds and draws the numbers
            again at every use: no memory, more time. Both give the same directions.

    Raises:
        InvalidArgumentError: If ``storage`` is neither.
    """

    def __init__(self, storage: Storage = "stored") -> None:
        if storage not in get_args(Storage):
            raise InvalidArgumentError(f"`storage` must be one of {get_args(Storage)}, got {storage!r}.")
        self.storage = storage

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        seeds = torch.randint(2**63 - 1, (count,), generator=generator, device="cpu").tolist()
        seeded = SeededDirections(self, parameters, seeds)
        return seeded if self.storage == "seeded" else StoredDirections(seeded, parameters)

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
            seeded: The directions being drawn, whose raw streams can be read.

        Returns:
            Shape ``(q, q)``, lower triangular, float64, on the CPU.
        """


class SeededDirections(ProbeDirections):
    """Directions that are regenerated from their seeds at every use.

    Args:
        family: Supplies the raw coordinates and how to mix them.
        parameters: Tensors that give the shapes, types and devices.
        seeds: One seed per direction.
    """

    def __init__(self, family: RandomFamily, parameters: Sequence[Tensor], seeds: Sequence[int]) -> None:
        self.count = len(seeds)
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self._family = family
        self._seeds = seeds
        self._layout = [(parameter.numel(), parameter.dtype, parameter.device) for parameter in parameters]
        self._mixing = family.mixing(self)
        self._terms = [[(i, weight) for i, weight in enumerate(row) if weight] for row in self._mixing.tolist()]

    def raw(self, index: int) -> Iterator[Tensor]:
        """The raw vector behind direction ``index``, a chunk at a time, in float32 or wider."""
        generators: dict[torch.device, torch.Generator] = {}
        for numel, dtype, device in self._layout:
            if device not in generators:
                generators[device] = torch.Generator(device).manual_seed(self._seeds[index])
            for start in range(0, max(numel, 1), CHUNK):
                yield self._family.sample(min(CHUNK, numel - start), generators[device], at_least_float32(dtype))

    def direction(self, index: int) -> Iterator[Tensor]:
        """Direction ``index``, a chunk at a time, in float32 or wider."""
        support, weights = zip(*self._terms[index], strict=True)
        for parts in zip(*map(self.raw, support), strict=True):
            yield combination(weights, parts)

    def directions(self) -> Iterator[list[Tensor]]:
        """All directions, a chunk at a time, each raw number drawn once: ``q`` tensors in float32 or wider per chunk."""
        for parts in zip(*map(self.raw, range(self.count)), strict=True):
            yield [combination([weight for _, weight in row], [parts[i] for i, _ in row]) for row in self._terms]

    def move(self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float) -> None:
        """See :meth:`ProbeDirections.move`."""
        stream = self.direction(index)
        for target, origin in zip(targets, origins, strict=True):
            for to, source in zip(chunks(target), chunks(origin), strict=True):
                torch.add(source, next(stream).to(source.dtype), alpha=distance, out=to)

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        raw = torch.stack([self._project_raw(index, vectors) for index in range(self.count)])
        return (self._mixing.to(raw.device) @ raw).to(at_least_float32(self._layout[0][1]))

    def _project_raw(self, index: int, vectors: Sequence[Tensor | None]) -> Tensor:
        # In float64: near q = d the mixing's weights are large and alternate in sign.
        total = torch.zeros((), dtype=torch.float64, device=self._layout[0][2])
        for piece, part in zip(self._pieces(vectors), self.raw(index), strict=True):
            if piece is not None:
                total += torch.dot(part.double(), piece.double()).to(total.device)
        return total

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`."""
        weights = self._mixing.T.to(coefficients.device) @ coefficients.double()
        total = torch.zeros(3, dtype=torch.float64, device=coefficients.device)
        for piece, *parts in zip(self._pieces(vectors), *map(self.raw, range(self.count)), strict=True):
            if piece is not None:
                step = combination(weights.to(piece.device), parts)
                total += moments(piece, step).to(total.device)
                piece.sub_(step)
        return total

    def _pieces(self, vectors: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
        """The chunks of ``vectors``, in step with :meth:`raw`; ``None`` for each chunk of a missing one."""
        for vector, (numel, _, _) in zip(vectors, self._layout, strict=True):
            if vector is None:
                yield from [None] * max(1, -(-numel // CHUNK))
            else:
                yield from chunks(vector)


class StoredDirections(ProbeDirections):
    """Directions kept in memory, ``q`` rows per parameter.

    Args:
        seeded: Where the numbers come from.
        parameters: Tensors that give the shapes, types and devices.
    """

    def __init__(self, seeded: SeededDirections, parameters: Sequence[Tensor]) -> None:
        self.count = seeded.count
        self.dimension = seeded.dimension
        self._rows = [torch.empty(seeded.count, p.numel(), dtype=p.dtype, device=p.device) for p in parameters]
        stream = seeded.directions()
        for rows in self._rows:
            for columns in torch.split(rows, CHUNK, dim=1):
                for row, part in zip(columns, next(stream), strict=True):
                    row.copy_(part)

    def move(self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float) -> None:
        """See :meth:`ProbeDirections.move`."""
        for target, origin, rows in zip(targets, origins, self._rows, strict=True):
            torch.add(origin.detach(), rows[index].view(origin.shape), alpha=distance, out=target.detach())

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        device, dtype = self._rows[0].device, at_least_float32(self._rows[0].dtype)
        total = torch.zeros(self.count, dtype=dtype, device=device)
        for vector, rows in zip(vectors, self._rows, strict=True):
            if vector is not None:
                total += torch.mv(rows, vector.detach().reshape(-1).to(rows.dtype)).to(total)
        return total

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor) -> Tensor:
        """See :meth:`ProbeDirections.subtract_`."""
        total = torch.zeros(3, dtype=torch.float64, device=coefficients.device)
        for vector, rows in zip(vectors, self._rows, strict=True):
            if vector is not None:
                step = (coefficients.to(rows) @ rows).view(vector.shape)
                total += moments(vector.detach(), step).to(total.device)
                vector.detach().sub_(step)
        return total


def combination(weights: Sequence[float] | Tensor, parts: Sequence[Tensor]) -> Tensor:
    """The weighted sum of ``parts``; of several, summed in float64, since weights near q = d are large and alternate in sign.

    Args:
        weights: One weight per part: numbers, or a tensor on the parts' device, which is not synchronised with.
        parts: Tensors of one shape, at least one.

    Returns:
        A new tensor of their shape and type.
    """
    if len(parts) == 1:
        return parts[0] * weights[0]
    total = torch.zeros_like(parts[0], dtype=torch.float64)
    for weight, part in zip(weights, parts, strict=True):
        total += part.double() * weight
    return total.to(parts[0].dtype)
