r"""Finite differences of a loss along probe directions: perturb in place, evaluate, restore exactly."""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.errors import InvalidArgumentError

Difference = Literal["forward", "central"]


def check_difference(difference: str) -> None:
    """Refuse an unknown finite-difference scheme.

    Args:
        difference: The scheme's name.

    Raises:
        InvalidArgumentError: If it is neither ``"forward"`` nor ``"central"``.
    """
    if difference not in get_args(Difference):
        raise InvalidArgumentError(f"`difference` must be one of {get_args(Difference)}, got {difference!r}.")


def check_mu(mu: float | Literal["auto"]) -> None:
    """Refuse a smoothing radius that is neither a positive, finite number nor ``"auto"``.

    Args:
        mu: The smoothing radius.

    Raises:
        InvalidArgumentError: If it is not allowed.
    """
    if mu == "auto":
        return
    if isinstance(mu, bool) or not isinstance(mu, (int, float)) or not 0 < mu < float("inf"):
        raise InvalidArgumentError(f"`mu` must be a positive, finite number or 'auto', got {mu!r}.")


# Balance of rounding against truncation, as powers of the machine epsilon: see `auto_mu`.
_EXPONENTS = {"forward": 2 / 5, "central": 1 / 3}
_STEEP_EXPONENTS = {"forward": 1 / 2, "central": 1 / 3}


def auto_mu(
    parameters: Sequence[Tensor],
    difference: Difference = "forward",
    dtype: torch.dtype | None = None,
    steep: bool = False,
) -> float:
    r"""Smoothing radius that fits the parameters' scale and the arithmetic.

    .. math:: \mu = \epsilon^{p} \, (1 + \lVert x \rVert), \qquad p = 2/5 \text{ (forward)},\ 1/3 \text{ (central)}

    The step is for directions of unit norm, so a weight moves by about :math:`\mu / \sqrt d`: a small, fixed share of its
    typical size, whatever :math:`d`. A fixed radius would not do: along a random direction the loss changes by about
    :math:`\mu \lVert \nabla f \rVert / \sqrt d`, which drowns in the rounding of the loss, :math:`\epsilon f`, as :math:`d`
    grows. The one keeps the step away from zero where the parameters start there.

    Central differences have an error of order :math:`\mu^2`, so rounding balances truncation at :math:`p = 1/3`. Forward
    differences have one of order :math:`\mu`, which would give :math:`p = 1/2`, but the curvature along a random direction,
    :math:`\operatorname{tr}(H)/d`, is small against the slope: a larger step, :math:`p = 2/5`, measured best over linear models
    and multilayer perceptrons of 10 to :math:`10^7` parameters. Along directions that lead the gradient noise the loss is
    steep, and curved, so there it is :math:`p = 1/2`.

    Args:
        parameters: The point :math:`x`.
        difference: ``"forward"`` or ``"central"``.
        dtype: Type that sets the machine epsilon; by default the coarsest of the parameters'.
        steep: Whether the directions are such that the loss changes along them more than along random ones.

    Returns:
        The radius, in units of parameter norm.

    Raises:
        InvalidArgumentError: If there are no parameters, or ``difference`` is unknown.

    References:
        The scaling by :math:`1 + \lVert x \rVert` is that of Jacobian-free Newton-Krylov methods: Knoll & Keyes, Journal
        of Computational Physics 193 (2004), section 2.
    """
    check_difference(difference)
    if not parameters:
        raise InvalidArgumentError("`parameters` is empty: pass at least one tensor.")
    held = sum(float(torch.linalg.vector_norm(local(p), dtype=torch.float64)) ** 2 for p in parameters)
    squares = float(shard_group(parameters).total(torch.tensor(held, dtype=torch.float64, device="cpu")))
    epsilon = max(torch.finfo(p.dtype).eps for p in parameters) if dtype is None else torch.finfo(dtype).eps
    exponent = (_STEEP_EXPONENTS if steep else _EXPONENTS)[difference]
    return float(epsilon**exponent * (1 + squares**0.5))


class Snapshot:
    r"""The snapshot :math:`\tilde x`: a copy of the parameters to step away from and to return to, bit for bit.

    Use it as a context manager around the evaluations: on leaving, also through an error, the parameters hold exactly the
    bits that they held on entering.

    Args:
        parameters: The live parameters. They are perturbed in place; the copy shares no storage with them. Of sharded ones,
            the part of this process is copied and perturbed.
        origin: The copy of an earlier snapshot, ``snapshot.origin``, to go back to with :meth:`restore`; by default the
            snapshot is of the parameters as they are.
    """

    def __init__(self, parameters: Sequence[Tensor], origin: Sequence[Tensor] | None = None) -> None:
        self.parameters = [local(parameter) for parameter in parameters]
        self.origin = [parameter.clone() for parameter in self.parameters] if origin is None else origin
        """The copy."""

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Set the parameters back to the snapshot."""
        for parameter, origin in zip(self.parameters, self.origin, strict=True):
            parameter.copy_(origin)

    def perturb(self, directions: ProbeDirections, index: int, distance: float) -> None:
        r"""Set the parameters to :math:`\tilde x + s\,u_j`.

        Args:
            directions: The probe directions.
            index: Which one, ``0 <= index < q``.
            distance: The step :math:`s`, in units of parameter norm.
        """
        directions.move(self.parameters, self.origin, index, distance)


def probe_losses(
    loss: Callable[[], Tensor], snapshot: Snapshot, directions: ProbeDirections, mu: float, difference: Difference
) -> Tensor:
    r"""Evaluate losses at the snapshot and at the perturbed points around it.

    Args:
        loss: One loss or several at the current parameters, a tensor of any shape ``S``; called ``1 + q`` times, for central
            differences ``1 + 2q`` times. Its randomness must be the same at each call.
        snapshot: The snapshot, whose parameters ``loss`` reads. They hold the snapshot before and after, also after an error.
        directions: The ``q`` probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        Shape ``S + (1 + q,)`` or ``S + (1 + 2q,)``, float32 or wider: the losses at the snapshot, then at :math:`+\mu u_j`
        for each direction, then, for central differences, at :math:`-\mu u_j`.
    """
    origin = _value(loss()).unsqueeze(-1)
    return torch.cat([origin, perturbed_losses(loss, snapshot, directions, mu, difference)], dim=-1)


def perturbed_losses(
    loss: Callable[[], Tensor],
    snapshot: Snapshot,
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
    indices: Sequence[int] | None = None,
) -> Tensor:
    r"""Evaluate losses at the perturbed points only: each point is gone to once, whatever the number of losses.

    Args:
        loss: See :func:`probe_losses`.
        snapshot: The snapshot, which the parameters hold before and after.
        directions: The probe directions.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.
        indices: Which of the directions; by default all of them.

    Returns:
        What :func:`probe_losses` returns, without the losses at the snapshot.
    """
    values = []
    try:
        for sign in (1.0, -1.0) if difference == "central" else (1.0,):
            for index in range(directions.count) if indices is None else indices:
                snapshot.perturb(directions, index, sign * mu)
                values.append(_value(loss()))
    finally:
        snapshot.restore()
    return torch.stack(values, dim=-1)


def probe_differences(losses: Tensor, mu: float, difference: Difference) -> Tensor:
    r"""Turn losses into probe differences, the finite-difference slopes along the directions.

    .. math:: \delta_j = \frac{f(\tilde x + \mu u_j) - f(\tilde x)}{\mu}
        \quad\text{or}\quad \frac{f(\tilde x + \mu u_j) - f(\tilde x - \mu u_j)}{2\mu}

    Args:
        losses: Shape ``(..., 1 + q)`` for forward, ``(..., 1 + 2q)`` for central differences, as
            :func:`probe_losses` orders them.
        mu: Smoothing radius.
        difference: ``"forward"`` or ``"central"``.

    Returns:
        Shape ``(..., q)``, in loss units per unit of parameter norm.
    """
    if difference == "forward":
        return (losses[..., 1:] - losses[..., :1]) / mu
    plus, minus = losses[..., 1:].chunk(2, dim=-1)
    return (plus - minus) / (2 * mu)


def scalar(loss: Tensor) -> Tensor:
    """The loss of one batch, whatever the shape that it comes in.

    Args:
        loss: A tensor of one element.

    Returns:
        Shape ``()``, detached, float32 or wider.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise InvalidArgumentError(f"`loss` must be a tensor of one element, got {given}: take its mean, or wrap the number.")
    return _value(loss).reshape(())


def _value(loss: Tensor) -> Tensor:
    return loss.detach().to(at_least_float32(loss.dtype))
