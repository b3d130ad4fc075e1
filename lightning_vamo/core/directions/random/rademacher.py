"""Rademacher directions."""

import torch
from torch import Tensor

from lightning_vamo.core.directions.random.family import RandomFamily
from lightning_vamo.core.directions.random.seeded import SeededDirections


class RademacherDirections(RandomFamily):
    r"""Independent directions of random signs, of norm exactly one.

    .. math:: u_j = \sigma_j / \sqrt d, \qquad \sigma_j \text{ uniform on } \{-1, +1\}^d

    Args:
        storage: ``"stored"`` (``q * d`` numbers) or ``"seeded"`` (a seed, regenerated at every use).

    References:
        Spall, "Multivariate Stochastic Approximation Using a Simultaneous Perturbation Gradient Approximation", IEEE
        Transactions on Automatic Control 37 (1992).
    """

    def sample(self, size: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """See :meth:`RandomFamily.sample`; the coordinates are random signs."""
        signs = torch.empty(size, dtype=dtype, device=generator.device)
        return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)

    def mixing(self, seeded: SeededDirections) -> Tensor:
        r"""See :meth:`RandomFamily.mixing`; the scale is :math:`1/\sqrt d`."""
        return torch.eye(seeded.count, dtype=torch.float64, device="cpu").div(seeded.dimension**0.5)
