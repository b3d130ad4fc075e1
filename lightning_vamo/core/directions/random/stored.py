"""Random directions that are kept in memory."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections, inner_products
from lightning_vamo.core.directions.random.seeded import SeededDirections
from lightning_vamo.core.directions.random.streams import pieces
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import ShardGroup, local
from lightning_vamo.core.small import Small, small, tensor_of

# How many numbers a correction with stored directions treats at a time on a CPU, so that they are read from memory once.
BLOCK = 2**18


class StoredDirections(ProbeDirections):
    """Directions kept in memory: ``q`` rows for each parameter, or for this process's shard of the parameter.

    Args:
        rows: For each parameter, ``q`` rows of its numbers; see :func:`stored_rows`.
        dimension: ``d``, the number of coordinates in all processes.
        shards: The processes that hold the parameters together.

    Attributes:
        rows: The rows of each parameter.
    """

    def __init__(self, rows: list[Tensor], dimension: int, shards: ShardGroup) -> None:
        self.count = len(rows[0])
        self.dimension = dimension
        self.shards = shards
        self.rows = rows
        # Memory for the vector that a correction subtracts: on a CPU, to allocate it takes longer than to fill it.
        size = min(BLOCK, max(part.shape[1] for part in rows))
        self._buffers = {part.dtype: torch.empty(size, dtype=part.dtype, device="cpu") for part in rows}

    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        """See :meth:`ProbeDirections.move`."""
        for target, origin, rows in zip(map(local, targets), map(local, origins), self.rows, strict=True):
            torch.add(origin, rows[index].view(origin.shape), alpha=distance, out=target)

    def sizes(self) -> list[list[int]]:
        """See :meth:`ProbeDirections.sizes`."""
        return [[len(part) for part in torch.split(rows[0], BLOCK) if len(part)] for rows in self.rows]

    def parts(self, index: int) -> Iterator[Tensor]:
        """See :meth:`ProbeDirections.parts`."""
        for rows in self.rows:
            yield from (part.to(at_least_float32(part.dtype)) for part in torch.split(rows[index], BLOCK) if len(part))

    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        """See :meth:`ProbeDirections.project`."""
        device, dtype = self.rows[0].device, at_least_float32(self.rows[0].dtype)
        total = torch.zeros(self.count, dtype=dtype, device=device)
        for vector, rows in zip(vectors, self.rows, strict=True):
            if vector is not None:
                total += torch.mv(rows, local(vector).reshape(-1).to(rows.dtype)).to(total)
        return self.shards.total(total)

    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """See :meth:`ProbeDirections.remove_`."""
        products: list[Tensor] = []
        weights = tensor_of(coefficients)
        for vector, rows in zip(vectors, self.rows, strict=True):
            if vector is not None and rows.numel():
                for flat in pieces(vector, rows.shape[1]):
                    products += self._subtract(flat, rows, weights.to(rows))
        if not products:
            return small(weights.new_zeros(3))
        return small(torch.stack([each.to(weights.device) for each in products]).double().view(-1, 3).sum(dim=0))

    def _subtract(self, vector: Tensor, rows: Tensor, weights: Tensor) -> list[Tensor]:
        """Subtract a combination of ``rows`` from a flat vector, in place; return the inner products, block by block."""
        # A GPU takes all rows at once: it has the bandwidth, and would wait for the launch of each block's kernels.
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
    """Draw all numbers of seeded directions once, and keep the numbers.

    Args:
        seeded: The directions to draw.
        parameters: Tensors that give the shapes, types and devices.
        wide: Whether to keep the numbers in float32 or wider, even if the parameters' type is narrower.

    Returns:
        For each parameter, or its shard, ``q`` rows of its numbers.
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
