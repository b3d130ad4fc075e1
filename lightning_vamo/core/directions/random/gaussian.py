"""Gaussian directions."""

import functools

import torch
from torch import Tensor

from lightning_vamo.core.directions.random.family import RandomFamily
from lightning_vamo.core.directions.random.seeded import SeededDirections


class GaussianDirections(RandomFamily):
    r"""Independent Gaussian directions, scaled to unit mean square norm.

    .. math:: u_j \sim \mathcal{N}(0, I_d / d)

    Args:
        storage: ``"stored"`` (``q * d`` numbers) or ``"seeded"`` (a seed, regenerated at every use).

    References:
        Nesterov & Spokoiny, "Random Gradient-Free Minimization of Convex Functions", Foundations of Computational
        Mathematics 17 (2017), where the directions are not scaled.
    """

    def mixing(self, seeded: SeededDirections) -> Tensor:
        r"""See :meth:`RandomFamily.mixing`; the scale is :math:`1/\sqrt d`."""
        return _scaled(seeded.count, seeded.dimension)


@functools.lru_cache(16)
def _scaled(count: int, dimension: int) -> Tensor:
    """The identity, scaled; kept for the next draw, so it must not be changed."""
    return torch.eye(count, dtype=torch.float64, device="cpu").div(dimension**0.5)
