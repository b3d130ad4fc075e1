r"""Random directions, kept or regenerated: two storages that give the same numbers.

Every random family draws raw vectors :math:`z_1 \ldots z_q` with independent coordinates and mixes them,
:math:`u_j = \sum_i A_{ji} z_i`, with a small ``q x q`` matrix: a diagonal of scales, or the inverse Cholesky factor that makes
them orthonormal. A raw vector is cut into chunks, each a random stream of its own that a seed determines, so directions need
no memory: *seeded* directions regenerate the streams whenever they are used, *stored* directions keep what the same streams
gave once. A process that holds shards of the parameters generates only the chunks that they lie in.
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
