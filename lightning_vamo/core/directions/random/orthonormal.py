"""Orthonormal directions."""

import torch
from torch import Tensor

from lightning_vamo.core.directions.random.family import RandomFamily
from lightning_vamo.core.directions.random.seeded import SeededDirections


class OrthonormalDirections(RandomFamily):
    r"""Orthonormal directions that span a uniformly random ``q``-dimensional subspace.

    .. math:: U = L^{-1} Z, \qquad Z_{ji} \sim \mathcal{N}(0, 1), \qquad Z Z^\top = L L^\top

    With :math:`\alpha = q/d` orthonormal directions remove exactly the share :math:`q/d` of the gradient's variance at the
    snapshot, and with :math:`q = d` VAMO is first-order SVRG. Seeded storage combines up to ``q`` raw vectors for each
    direction, so a sweep generates :math:`q^2/2` vectors per batch.

    Args:
        storage: ``"stored"`` (``q * d`` numbers) or ``"seeded"`` (a seed and a ``q x q`` matrix).
    """

    orthonormal = True

    def mixing(self, seeded: SeededDirections) -> Tensor:
        """See :meth:`RandomFamily.mixing`; the matrix is the inverse Cholesky factor of the Gram matrix, in float64."""
        gram = torch.zeros(seeded.count, seeded.count, dtype=torch.float64, device="cpu")
        for parts in zip(*(seeded.raw(index) for index in range(seeded.count)), strict=True):
            raw = torch.stack(parts).double()
            gram += (raw @ raw.T).cpu()
        identity = torch.eye(seeded.count, dtype=torch.float64, device="cpu")
        factor = torch.linalg.cholesky(seeded.shards.total(gram))
        mixing: Tensor = torch.linalg.solve_triangular(factor, identity, upper=False)
        return mixing
