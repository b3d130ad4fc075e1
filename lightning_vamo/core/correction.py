r"""VAMO's gradient: the mini-batch gradient with the control variate taken out, in place."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.control_variate import ControlVariate
from lightning_vamo.core.directions import ProbeDirections


class Correction:
    r"""Corrects the gradients in ``.grad`` with the control variate of the batches that they come from.

    .. math:: v = g - \frac{1}{N} \sum_{k \in \text{step}} \sum_j r_{k,j}\, u_j

    where the step accumulates :math:`N` batches, each of whose losses was divided by :math:`N`. A parameter whose ``.grad``
    is None stays out: the step does not touch it.

    Args:
        parameters: The parameters, in the order in which the directions were drawn.
        directions: The ``q`` directions :math:`u_j`.
        control: The table of coefficients :math:`r_{k,j}`.
        beta: The effective coefficient that the table was made with; at zero, gradients are not touched at all.
    """

    def __init__(self, parameters: Sequence[Tensor], directions: ProbeDirections, control: ControlVariate, beta: float) -> None:
        self.parameters = parameters
        self.directions = directions
        self.control = control
        self.beta = beta

    def apply(
        self, rows: Sequence[int], accumulated: int = 1, scale: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor | None:
        """Correct the gradients of one optimizer step, in place.

        Args:
            rows: Positions in the plan of the batches whose gradients were accumulated.
            accumulated: ``N``, the number that each of their losses was divided by.
            scale: Scales the coefficients as the gradients are scaled, where a GradScaler did so.

        Returns:
            Shape ``(2,)``: the squared norms of the gradient before and after, zeros if they are not finite; or None if there
            was nothing to correct.
        """
        gradients = [parameter.grad for parameter in self.parameters]
        present = [gradient for gradient in gradients if gradient is not None]
        if not rows or not present or self.beta == 0:
            return None
        coefficients = torch.stack([self.control.correction(row) for row in rows]).sum(dim=0) / accumulated
        before = squared_norm(present)
        self.directions.subtract_(gradients, coefficients if scale is None else scale(coefficients))
        moments = torch.stack((before, squared_norm(present)))
        return torch.where(moments.isfinite().all(), moments, 0.0)


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares over all tensors.

    Args:
        tensors: At least one tensor.

    Returns:
        A tensor without dimensions, float32 or wider.
    """
    return torch.nn.utils.get_total_norm(tensors).float().square()
