"""Finite differences of a loss along probe directions: perturb in place, evaluate, restore exactly."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.probes.point import Point
from lightning_vamo.errors import InvalidArgumentError

Difference = Literal["forward", "central"]


def check_difference(difference: str) -> None:
    """Refuse an unknown finite-difference scheme.

    Args:
        difference: The scheme's name.

    Raises:
        InvalidArgumentError: If the name is neither ``"forward"`` nor ``"central"``.
    """
    if difference not in get_args(Difference):
        names = ", ".join(map(repr, get_args(Difference)))
        raise InvalidArgumentError(f"`difference` must be one of {names}, got {difference!r}.")


def probe_losses(
    loss: Callable[[], Tensor], point: Point, directions: ProbeDirections, mu: float, difference: Difference
) -> Tensor:
    r"""Evaluate losses at the snapshot and at the perturbed points around it.

    Args:
        loss: Returns one loss or several losses at the current parameters, a tensor of any shape ``S``. It is called ``1 + q``
            times, for central differences ``1 + 2q`` times, and must draw the same random numbers at each call.
        point: The snapshot. Its parameters, which ``loss`` reads, hold the snapshot before and after, even after an error.
        directions: The ``q`` probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        Shape ``S + (1 + q,)`` or ``S + (1 + 2q,)``, float32 or wider: the losses at the snapshot, then at :math:`+\mu u_j`
        for each direction, then, for central differences, at :math:`-\mu u_j`.
    """
    origin = detached(loss()).unsqueeze(-1)
    return torch.cat([origin, perturbed_losses(loss, point, directions, mu, difference)], dim=-1)


def perturbed_losses(
    loss: Callable[[], Tensor],
    point: Point,
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    indices: Sequence[int] | None = None,
) -> Tensor:
    r"""Evaluate losses at the perturbed points only: the weights move to each point once, whatever the number of losses.

    Args:
        loss: See :func:`probe_losses`.
        point: The snapshot, which the parameters hold before and after the call.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        indices: Numbers of the directions to use; by default all directions.

    Returns:
        The result of :func:`probe_losses` without the losses at the snapshot.
    """
    signs = (1.0, -1.0) if difference == "central" else (1.0,)
    used = range(directions.count) if indices is None else indices
    return losses_at(loss, point, directions, [(index, sign * mu) for sign in signs for index in used])


def losses_at(
    loss: Callable[[], Tensor], point: Point, directions: ProbeDirections, steps: Sequence[tuple[int, float]]
) -> Tensor:
    r"""Evaluate losses at points along probe directions.

    Args:
        loss: See :func:`probe_losses`.
        point: The snapshot, which the parameters hold before and after the call.
        directions: The probe directions.
        steps: For each point :math:`\tilde x + s\,u_j` the direction's number :math:`j`, and the step :math:`s` in units of
            parameter norm.

    Returns:
        Shape ``S + (len(steps),)``, float32 or wider.
    """
    values = []
    try:
        for index, distance in steps:
            point.perturb(directions, index, distance)
            values.append(detached(loss()))
    finally:
        point.restore()
    return torch.stack(values, dim=-1)


def probe_differences(losses: Tensor, mu: float | Tensor, difference: Difference) -> Tensor:
    r"""Turn losses into probe differences, the finite-difference slopes along the directions.

    .. math:: \delta_j = \frac{f(\tilde x + \mu u_j) - f(\tilde x)}{\mu}
        \quad\text{or}\quad \frac{f(\tilde x + \mu u_j) - f(\tilde x - \mu u_j)}{2\mu}

    Args:
        losses: Losses in the order of :func:`probe_losses`, shape ``(..., 1 + q)`` for forward differences and
            ``(..., 1 + 2q)`` for central differences.
        mu: Smoothing radius, or a radius for each column, shape ``(q,)``.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        Shape ``(..., q)``, in loss units per unit of parameter norm.
    """
    if difference == "forward":
        return (losses[..., 1:] - losses[..., :1]) / mu
    plus, minus = losses[..., 1:].chunk(2, dim=-1)
    return (plus - minus) / (2 * mu)


def as_tensor(loss: Any, device: torch.device) -> Any:
    """Make a tensor of a loss that is a plain number, such as a score of decoded text; other values stay as they are.

    Args:
        loss: What a user's function returned.
        device: Where the tensor of a number goes.

    Returns:
        Shape ``()``, float32 or wider, for a number of Python or NumPy; ``loss`` itself for anything else.
    """
    if isinstance(loss, Tensor) or not isinstance(loss, Real):
        return loss
    return torch.tensor(float(loss), dtype=torch.promote_types(torch.get_default_dtype(), torch.float32), device=device)


def scalar(loss: Tensor) -> Tensor:
    """The loss of one batch as a tensor without dimensions.

    Args:
        loss: A tensor of one element.

    Returns:
        Shape ``()``, detached, float32 or wider.

    Raises:
        InvalidArgumentError: If the loss is something else, or complex.
    """
    if isinstance(loss, Tensor) and loss.dim() == 0 and loss.dtype is torch.float32:
        return loss.detach()  # most often
    if isinstance(loss, Tensor) and loss.is_complex():
        raise InvalidArgumentError(
            "`loss` must be a real number, got a complex tensor: return its real part, or the square of its absolute value."
        )
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise InvalidArgumentError(
            f"`loss` must be a number or a tensor of one element, got {given}: return the mean of a tensor."
        )
    return detached(loss).reshape(())


def detached(loss: Tensor) -> Tensor:
    """The loss without its graph, in float32 or wider."""
    return loss.detach().to(at_least_float32(loss.dtype))


def numbers_of(losses: Sequence[Tensor]) -> list[float]:
    """The numbers of losses of shape ``()``, as numbers of Python; a GPU is waited for once."""
    if losses[0].device.type == "cpu":  # a few numbers are read faster than tensors are stacked
        return [float(loss) for loss in losses]
    numbers: list[float] = torch.stack([loss.double() for loss in losses]).tolist()
    return numbers
