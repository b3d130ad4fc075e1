r"""Take a step of SGD along directions, in place, without a gradient in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.random.seeded import combination
from lightning_vamo.core.gradient.excursion import Excursion, along
from lightning_vamo.core.gradient.kept import KeptExcursion
from lightning_vamo.core.sharding import local


@dataclass(frozen=True)
class Rate:
    r"""The learning rate and weight decay of a parameter, from its optimizer group.

    Attributes:
        lr: :math:`\eta`.
        weight_decay: :math:`\lambda`.
    """

    lr: float
    weight_decay: float = 0.0


def descend(
    parameters: Sequence[Tensor],
    directions: ProbeDirections,
    coefficients: Sequence[float],
    rates: Sequence[Rate],
    excursion: Excursion | None = None,
) -> None:
    r"""Take a step of SGD with the gradient :math:`g = \sum_j c_j u_j`, as ``torch.optim.SGD`` takes it.

    .. math:: x \leftarrow x - \eta\,(g + \lambda x)

    Args:
        parameters: :math:`x`, changed in place; of a sharded parameter, the part of this process.
        directions: :math:`u_j`.
        coefficients: :math:`c_j`, ``q`` numbers.
        rates: :math:`\eta` and :math:`\lambda` of each parameter.
        excursion: The excursion from which the parameters have to come back first. With a single direction, coming back and the
            step share one pass over the direction.
    """

    def step(number: int, piece: Tensor, gradient: Tensor | None) -> None:
        rate = rates[number]
        if gradient is None and not rate.weight_decay:
            return
        gradient = torch.zeros_like(piece) if gradient is None else gradient.to(piece.dtype)
        piece.add_(gradient.add(piece, alpha=rate.weight_decay) if rate.weight_decay else gradient, alpha=-rate.lr)

    if excursion is not None and excursion.away:
        if directions.count == 1:
            [only] = coefficients
            alike = len(set(rates)) == 1 and not rates[0].weight_decay
            if alike and isinstance(excursion, KeptExcursion) and excursion.back_and_step(only, rates[0].lr):
                return
            excursion.back(lambda number, piece, part: step(number, piece, None if part is None else part * only))
            return
        excursion.back()
    held = [local(parameter) for parameter in parameters]
    for number, piece, gradient in along(held, directions.sizes(), _combined(directions, coefficients)):
        step(number, piece, gradient)


def _combined(directions: ProbeDirections, coefficients: Sequence[float]) -> Iterator[Tensor | None]:
    """The parts of a combination of directions."""
    for parts in zip(*(directions.parts(index) for index in range(directions.count)), strict=True):
        given = [(weight, part) for weight, part in zip(coefficients, parts, strict=True) if part is not None]
        yield combination(*zip(*given, strict=True)) if given else None


Scale = Callable[[Tensor], Tensor]


def write_gradient(
    parameters: Sequence[Tensor], directions: ProbeDirections, coefficients: Tensor, scale: Scale | None = None
) -> None:
    r"""Add the gradient :math:`g = \sum_j c_j u_j` to ``.grad``; a missing ``.grad`` is created.

    Args:
        parameters: The parameters.
        directions: :math:`u_j`.
        coefficients: :math:`c`, shape ``(q,)``.
        scale: Scales the coefficients if a GradScaler will unscale the gradients; None if no GradScaler is used.
    """
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    placed = coefficients.to(parameters[0].device, non_blocking=True)  # or each inner product would be copied to the host
    directions.subtract_(gradients, -(placed if scale is None else scale(placed)))
