"""The paper's zeroth-order gradient estimators, for use on any function of tensors."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from lightning_vamo.core.directions import Directions, ProbeDirections, SphereDirections
from lightning_vamo.core.probes.difference import (
    Difference,
    as_tensor,
    check_difference,
    probe_differences,
    probe_losses,
    scalar,
)
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import auto_mu, check_mu
from lightning_vamo.core.schedules import check_probes
from lightning_vamo.errors import NonFiniteLossError


@torch.no_grad()
def estimate_gradient(
    loss: Callable[[], Tensor],
    parameters: Iterable[Tensor],
    probes: int = 1,
    *,
    directions: Directions | None = None,
    mu: float | Literal["auto"] = "auto",
    difference: Difference = "forward",
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    r"""Estimate a gradient from function values alone.

    .. math:: \hat\nabla f(x) = \frac{d}{q} \sum_{j=1}^{q} \frac{f(x + \mu u_j) - f(x)}{\mu}\, u_j

    With one probe this is the paper's two-point estimator, with more probes the multi-point estimator. As
    :math:`\mathbb{E}[u u^\top] = I_d/d`, it is an unbiased estimate of the gradient of :math:`f` smoothed over a ball of radius
    :math:`\mu`.

    Args:
        loss: The function, which returns a number or a tensor of one element. It is called without gradients,
            ``1 + probes`` times (``1 + 2 probes`` for central differences).
        parameters: The tensors that the function depends on, perturbed in place and restored bit for bit.
        probes: ``q``, the number of directions.
        directions: The family of directions; by default :class:`~lightning_vamo.core.directions.SphereDirections`.
        mu: Smoothing radius for unit vectors, or ``"auto"``: see :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        difference: ``"forward"`` or ``"central"``.
        generator: CPU generator for the directions; by default a new generator with a random seed. The global generator is
            never touched.

    Returns:
        The estimate: for each parameter, a tensor of the parameter's shape and type.

    Raises:
        InvalidArgumentError: If an argument is not allowed.
        NonFiniteLossError: If ``loss`` is NaN or infinite at one of the points.

    References:
        Chen & Ma, arXiv:2505.13954, section 3.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, -2.0, 3.0])
        >>> from lightning_vamo.core.directions import OrthonormalDirections
        >>> options = {"mu": 0.01, "difference": "central", "generator": torch.Generator().manual_seed(0)}
        >>> [g] = estimate_gradient(lambda: x.square().sum(), [x], 3, directions=OrthonormalDirections(), **options)
        >>> torch.allclose(g, 2 * x, atol=1e-3)
        True
    """
    parameters = list(parameters)
    check_probes("probes", probes, least=1)
    check_mu(mu)
    check_difference(difference)
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    drawn = (directions or SphereDirections()).draw(parameters, probes, generator)
    radius = auto_mu(parameters, difference) if mu == "auto" else mu
    with Point(parameters) as point:
        losses = probe_losses(lambda: scalar(as_tensor(loss(), point.parameters[0].device)), point, drawn, radius, difference)
    if not bool(losses.isfinite().all()):
        raise NonFiniteLossError(
            f"`loss` must be finite at the given point and around it, got {losses.tolist()}: check the point, or set a smaller"
            " `mu`."
        )
    slopes = probe_differences(losses, radius, difference)
    estimate = [torch.zeros_like(parameter) for parameter in parameters]
    drawn.subtract_(estimate, _coordinates(drawn, slopes) * (-drawn.dimension / drawn.count))
    return estimate


def _coordinates(drawn: ProbeDirections, weights: Tensor) -> Tensor:
    """The coordinates that ``subtract_`` takes for a weighted sum of directions."""
    unit = torch.eye(drawn.count, dtype=torch.float64, device=weights.device)
    whitening = drawn.whiten(unit)
    return weights if whitening is unit else (weights.double() @ torch.linalg.pinv(whitening)).to(weights)
