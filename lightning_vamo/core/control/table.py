r"""The table of a sweep as a control variate: each batch has a row of probe differences minus the mean row."""

import torch
from torch import Tensor

from lightning_vamo.core.control.rows import Rows
from lightning_vamo.errors import InvalidArgumentError


class ControlVariate(Rows):
    r"""The table :math:`\delta_{k,j}` of an epoch's batches, with the coefficients that correct a gradient.

    .. math:: r_{k,j} = \beta\,(\delta_{k,j} - \bar\delta_j), \qquad \bar\delta_j = \sum_k w_k \delta_{k,j} \Big/ \sum_k w_k

    The corrected gradient of batch ``k`` is :math:`\nabla f_k(x) - \sum_j r_{k,j} u_j`. As
    :math:`\sum_k w_k r_{k,j} = 0`, the corrections of an epoch, weighted by the sizes of their batches, cancel for every
    :math:`\beta`: the corrected gradient is an unbiased estimate of the gradient over all samples. If the last batch is
    smaller, most optimizers step as far with it as with the others, so its correction gets too much weight; ``drop_last``
    avoids this.

    Args:
        deltas: Probe differences, shape ``(K, q)``, a row per batch.
        weights: Number of samples of each batch, shape ``(K,)``. A batch of weight zero gave no loss: the batch has no part
            in the mean, and its correction is zero.
        beta: The effective coefficient :math:`\beta = \alpha d/q`.

    Raises:
        InvalidArgumentError: If the shapes do not fit, or the weights do not sum to a positive number.
    """

    def __init__(self, deltas: Tensor, weights: Tensor, beta: float) -> None:
        if deltas.ndim != 2 or weights.shape != deltas.shape[:1]:
            raise InvalidArgumentError(
                "`deltas` must have shape (K, q) and `weights` must have shape (K,), with K the number of batches and q the"
                f" number of directions, got {tuple(deltas.shape)} and {tuple(weights.shape)}."
            )
        total = float(weights.sum())
        if total <= 0 or float(weights.min()) < 0:
            raise InvalidArgumentError(
                f"`weights` must be non-negative with a positive sum, got the sum {total:g} and the smallest weight"
                f" {min(weights.tolist(), default=0):g}. A sum of 0 means that no batch gave a loss: return a loss from"
                " `training_step`."
            )
        self.beta = beta
        # In float64, since the corrections cancel only as exactly as the mean over many batches is known.
        used = weights[:, None] > 0
        wide = torch.where(used, deltas.double(), 0.0)
        mean = weights.double() @ wide / total
        self.mean = mean.to(deltas.dtype)
        """Weighted mean of the rows, shape ``(q,)``."""
        self.rows = torch.where(used, beta * (wide - mean), 0.0).to(deltas.dtype)
        """The coefficients of each batch's correction, shape ``(K, q)``."""

    def __len__(self) -> int:
        """``K``, the number of batches."""
        return len(self.rows)

    def correction(self, key: int) -> Tensor:
        """Coefficients of a batch's control variate along the directions.

        Args:
            key: Position of the batch in the plan that was swept, ``0 <= key < len(self)``.

        Returns:
            Shape ``(q,)``, in loss units per unit of parameter norm, on the table's device.

        Raises:
            IndexError: If ``key`` is not in the plan.

        References:
            Chen & Ma, arXiv:2505.13954, Algorithm 1.
        """
        if not 0 <= key < len(self):
            raise IndexError(f"`key` must be in [0, {len(self)}), the batches of the plan, got {key}.")
        return self.rows[key]
