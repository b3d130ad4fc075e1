"""Directions that are uniform on the unit sphere, as in the paper."""

import torch
from torch import Tensor

from lightning_vamo.core.directions.random.family import RandomFamily
from lightning_vamo.core.directions.random.seeded import SeededDirections


class SphereDirections(RandomFamily):
    r"""Independent directions, uniform on the unit sphere of :math:`\mathbb{R}^d`, jointly over all parameters.

    .. math:: u_j = z_j / \lVert z_j \rVert, \qquad z_j \sim \mathcal{N}(0, I_d)

    Independent directions are nearly, but not exactly, orthogonal: with the best coefficient, :math:`\alpha = q/(d+q-1)`, ``q``
    directions remove the share :math:`q/(d+q-1)` of the gradient's variance.

    Args:
        storage: ``"stored"`` (``q * d`` numbers) or ``"seeded"`` (a seed, regenerated at every use).

    References:
        Chen & Ma, arXiv:2505.13954, the two-point and multi-point estimators.

    Example:
        >>> import torch
        >>> directions = SphereDirections().draw([torch.zeros(3, 4), torch.zeros(5)], 2, torch.Generator().manual_seed(0))
        >>> directions.dense([torch.zeros(3, 4), torch.zeros(5)]).norm(dim=1).round(decimals=4)
        tensor([1., 1.])
    """

    def mixing(self, seeded: SeededDirections) -> Tensor:
        """See :meth:`RandomFamily.mixing`; the scale is one over the norm of each raw vector."""
        squares = [sum(float(part.double().square().sum()) for part in seeded.raw(i)) for i in range(seeded.count)]
        return torch.diag(seeded.shards.total(torch.tensor(squares, dtype=torch.float64, device="cpu")).rsqrt())
