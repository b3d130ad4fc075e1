r"""The efficiency of probes: the gradient noise that they remove, compared with the work that they add.

Without probes, larger batches reduce the noise: ``m`` times the samples, which take ``m`` times the work, divide the variance
of the noise by ``m``. So probes that remove a share ``R`` of the variance are worth a batch :math:`1/(1-R)` times as large.
Probes pay if they add less work than such a batch would.
"""

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import Difference


def batch_factor(removed: Tensor) -> Tensor:
    """How many times larger a batch without probes must be to have the same noise.

    Args:
        removed: Shares of the noise's variance that are removed, below 1.

    Returns:
        :math:`1/(1-R)`, of the same shape.
    """
    return 1 / (1 - removed)


def work_factor(maximum: int, forward: float, difference: Difference = "forward", sweeps: float = 1.0) -> Tensor:
    """The work of training with probes, as a multiple of the work without probes.

    Args:
        maximum: The largest number of probes.
        forward: Time of a sweep's forward pass, relative to the time of a training step on the same batch.
        difference: ``"forward"``, ``1 + q`` forward passes per batch and sweep, or ``"central"``, ``1 + 2q``.
        sweeps: Sweeps per epoch, on average.

    Returns:
        Shape ``(maximum + 1,)``, float64: 1 for no probe, then the work with ``1..maximum`` probes.
    """
    counts = torch.arange(maximum + 1, dtype=torch.float64, device="cpu")
    passes = 1 + counts * (2 if difference == "central" else 1)
    return torch.where(counts > 0, 1 + sweeps * forward * passes, 1.0)


def efficiency(removed: Tensor, forward: float, difference: Difference = "forward", sweeps: float = 1.0) -> Tensor:
    r"""The work of larger batches divided by the work of probes, for the same noise; probes pay above 1.

    .. math:: e_q = \frac{1}{(1 - R_q)\,(1 + s f (1 + q))}

    Args:
        removed: :math:`R_1 \ldots R_q`, the share of the noise's variance that the first ``1..q`` probes remove, below 1, shape
            ``(q,)``.
        forward: :math:`f`; see :func:`work_factor`.
        difference: See :func:`work_factor`.
        sweeps: :math:`s`; see :func:`work_factor`.

    Returns:
        Shape ``(q + 1,)``, float64: 1 for no probe, then the efficiency of ``1..q`` probes.
    """
    worth = torch.cat((removed.new_zeros(1, dtype=torch.float64), removed.double()))
    return batch_factor(worth) / work_factor(len(removed), forward, difference, sweeps)
