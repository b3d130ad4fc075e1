r"""Random directions, in two storages that give the same numbers: kept in memory, or regenerated from a seed.

Every random family draws raw vectors :math:`z_1 \ldots z_q` with independent coordinates and mixes the vectors,
:math:`u_j = \sum_i A_{ji} z_i`, with a small ``q x q`` matrix: a diagonal of scales, or the inverse Cholesky factor that makes
directions orthonormal. A raw vector is cut into chunks, and a seed determines a random stream for each chunk. *Seeded*
directions regenerate the streams at each use and need no memory; *stored* directions keep the numbers of the same streams. A
process that holds shards of the parameters generates only the chunks that contain its shards.
"""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.random.seeded import SeededDirections
from lightning_vamo.core.directions.random.stored import StoredDirections, stored_rows
from lightning_vamo.errors import InvalidArgumentError

Storage = Literal["stored", "seeded"]


class RandomFamily(Directions):
    """Base class of the random families, which mix raw random vectors.

    Args:
        storage: ``"stored"`` keeps the ``q * d`` numbers, or this process's share of them, which is fast. ``"seeded"`` keeps a
            seed and draws the numbers again at every use, which takes no memory, but more time. Both give the same directions.

    Raises:
        InvalidArgumentError: If ``storage`` is something else.
    """

    def __init__(self, storage: Storage = "stored") -> None:
        if storage not in get_args(Storage):
            raise InvalidArgumentError(f"`storage` must be {' or '.join(map(repr, get_args(Storage)))}, got {storage!r}.")
        self.storage = storage

    def seeded(self) -> Directions:
        """See :meth:`Directions.seeded`."""
        other = copy.copy(self)
        other.storage = "seeded"
        return other

    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
        seeded = SeededDirections(self, parameters, count, seed)
        if self.storage == "seeded":
            return seeded
        return StoredDirections(stored_rows(seeded, parameters), seeded.dimension, seeded.shards)

    def sample(self, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Raw coordinates: independent, with mean zero and variance one; standard normal unless a family overrides it.

        Args:
            size: Number of coordinates.
            generator: Random generator, on the device of the coordinates.
            dtype: Floating-point type of the coordinates.

        Returns:
            Shape ``(size,)``.
        """
        return torch.randn(size, generator=generator, dtype=dtype, device=generator.device)

    @abstractmethod
    def mixing(self, seeded: "SeededDirections") -> Tensor:
        """The matrix ``A`` that turns raw vectors into directions.

        Args:
            seeded: The directions that are being drawn, whose raw streams can be read. Add up sums over the streams over
                ``seeded.shards``.

        Returns:
            Shape ``(q, q)``, lower triangular, float64, on the CPU.
        """
