"""Directions that are kept as whole vectors, with the numbers of all parameters in one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.random.stored import BLOCK, StoredDirections
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.core.small import Small, product, tensor_of

Rows = list[Tensor]
"""``q`` rows of this process's numbers: a matrix for each type and device of the parameters, most often one."""


class Flat:
    """Where the numbers of each parameter lie in rows that hold the numbers of all parameters.

    Args:
        parameters: Tensors that give the shapes, types, devices and placements.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        held = [local(parameter) for parameter in parameters]
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self.shards = shard_group(parameters)
        self.shapes = [part.shape for part in held]
        self.narrow = any(part.dtype != at_least_float32(part.dtype) for part in held)
        """Whether a parameter's type is narrower than that of the rows, which is float32 at least."""
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for position, part in enumerate(held):
            groups.setdefault((part.device, at_least_float32(part.dtype)), []).append(position)
        self._kinds = list(groups)
        self._groups = list(groups.values())
        self._sizes = [[held[position].numel() for position in group] for group in self._groups]

    def zeros(self) -> list[Tensor]:
        """Flat zeros for a vector, in the parts of :data:`Rows`."""
        kinds = zip(self._kinds, self._sizes, strict=True)
        return [torch.zeros(sum(sizes), dtype=dtype, device=device) for (device, dtype), sizes in kinds]

    def take(self, vectors: Sequence[Tensor | None], out: list[Tensor]) -> None:
        """Copy a vector's part of each parameter into flat tensors.

        Args:
            vectors: A tensor for each parameter; zeros stand for None.
            out: Flat tensors of :meth:`zeros`, which get the numbers.
        """
        for group, sizes, flat in zip(self._groups, self._sizes, out, strict=True):
            parts = []
            for position, size in zip(group, sizes, strict=True):
                vector = vectors[position]
                parts.append(flat.new_zeros(size) if vector is None else local(vector).reshape(-1))
            torch.cat(parts, out=flat)

    def split(self, rows: Rows) -> list[Tensor]:
        """The columns of each parameter, as views: shape ``(q, numbers)``, or ``(numbers,)`` for a single vector."""
        parts: dict[int, Tensor] = {}
        for group, sizes, part in zip(self._groups, self._sizes, rows, strict=True):
            parts.update(zip(group, torch.split(part, sizes, dim=-1), strict=True))
        return [parts[position] for position in range(len(parts))]

    def join(self, rows: Sequence[Tensor]) -> Rows:
        """The reverse of :meth:`split`, as copies."""
        return [torch.cat([rows[position] for position in group], dim=-1) for group in self._groups]


class DenseDirections(StoredDirections):
    """Orthonormal directions that are kept as whole vectors.

    Args:
        rows: The directions.
        flat: Where the parameters' numbers lie in the rows.

    Attributes:
        whole: The directions.
        flat: See above.
    """

    def __init__(self, rows: Rows, flat: Flat) -> None:
        super().__init__(flat.split(rows), flat.dimension, flat.shards)
        self.whole = rows
        self.flat = flat
        self._step: list[Tensor] | None = None
        self._parts: list[Tensor] = []

    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """See :meth:`ProbeDirections.remove_`; of a small vector whose slopes are known, no number is read but to change it."""
        present = [local(vector) for vector in vectors if vector is not None]
        small = not self.flat.narrow and sum(rows.shape[1] for rows in self.whole) <= BLOCK
        if slopes is None or slopes.square is None or len(present) < len(vectors) or not small:
            return super().remove_(vectors, coefficients, slopes)
        weights, size = tensor_of(coefficients), self.shards.size
        if self._step is None:
            self._step = self.flat.zeros()
            parts = zip(self.flat.split(self._step), self.flat.shapes, strict=True)
            self._parts = [part.view(shape) for part, shape in parts]
        for rows, step in zip(self.whole, self._step, strict=True):
            torch.mv(rows.t(), weights.to(rows), out=step)
        torch._foreach_sub_(present, self._parts)
        return slopes.square, product(slopes.coordinates, coefficients) / size, product(coefficients, coefficients) / size

    def turning(self, others: ProbeDirections, parameters: Sequence[Tensor]) -> Tensor:
        """See :meth:`ProbeDirections.turning`; with others of this class a product of two matrices, and one reduction."""
        if not isinstance(others, DenseDirections):
            return super().turning(others, parameters)
        parts = [mine @ theirs.t() for mine, theirs in zip(self.whole, others.whole, strict=True)]
        total = sum((part.to(parts[0].device, torch.float64) for part in parts[1:]), parts[0].double())
        return others.whiten(self.shards.total(total))
