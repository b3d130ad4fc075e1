"""The smoothing radius: how far a probe steps away from the snapshot."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_vamo.core.probes.difference import Difference, check_difference
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.errors import InvalidArgumentError, shown


def check_mu(mu: float | Literal["auto"]) -> None:
    """Refuse a smoothing radius that is neither a positive number of usual size nor ``"auto"``.

    Args:
        mu: The smoothing radius.

    Raises:
        InvalidArgumentError: If the radius is not allowed.
    """
    if not (isinstance(mu, str) and mu == "auto"):
        check_radius("mu", mu, " or 'auto'")


LARGEST = 1e30
"""The largest radius that is allowed."""


def check_radius(name: str, radius: object, otherwise: str = "") -> None:
    """Refuse a distance from the weights that is no number, not positive, or larger than any weights.

    Args:
        name: Name of the argument, for the message.
        radius: The distance.
        otherwise: Other values that are allowed, for the message.

    Raises:
        InvalidArgumentError: If the distance is not allowed.
    """
    if isinstance(radius, bool) or not isinstance(radius, (int, float)) or not 0 < radius < math.inf:
        raise InvalidArgumentError(f"`{name}` must be a positive, finite number{otherwise}, got {shown(radius)}.")
    if radius > LARGEST:
        raise InvalidArgumentError(
            f"`{name}` must be at most {LARGEST:g}, got {radius!r}, which is more than float32 can move weights by:"
            " set a smaller distance, such as 0.001."
        )


Trend = Literal["rounding", "curvature"]
"""The larger error of a finite difference at a radius; with rounding a better radius is larger, with curvature smaller."""

FACTOR = 4.0
"""The factor between two radii that a search tries."""

LADDER = (0, -1, -2, -3, -4, -5, -6, 1, 2)
"""The radii that a search tries: the guess times these powers of ``FACTOR``. Guesses are more often too large than small."""

SMALL = 0.9
"""Probe differences are of use if their error is below this share of their size."""

GOOD_SNR = 20.0
"""With this signal-to-noise ratio, the error is a four-hundredth of the variance, and not worth a change of the radius."""

# Balance of rounding against truncation, as powers of the machine epsilon: see `auto_mu`.
_EXPONENTS = {"forward": 2 / 5, "central": 1 / 3}
_STEEP_EXPONENTS = {"forward": 1 / 2, "central": 1 / 3}


def auto_mu(
    parameters: Sequence[Tensor],
    difference: Difference = "forward",
    dtype: torch.dtype | None = None,
    steep: bool = False,
    robust: bool = False,
) -> float:
    r"""The smoothing radius that fits the scale of the parameters and the precision of the arithmetic.

    .. math:: \mu = \epsilon^{p} \, (1 + \lVert x \rVert), \qquad p = 2/5 \text{ (forward)},\ 1/3 \text{ (central)}

    The radius is for directions of unit norm, so a weight moves by about :math:`\mu / \sqrt d`: a small, fixed share of its
    typical size for every :math:`d`. A constant radius would not do: along a random direction the loss changes by about
    :math:`\mu \lVert \nabla f \rVert / \sqrt d`, which for large :math:`d` is less than the rounding error of the loss,
    :math:`\epsilon f`. The summand 1 keeps the radius above zero for parameters that start at zero.

    Central differences have an error of order :math:`\mu^2`, which balances the rounding error at :math:`p = 1/3`. Forward
    differences have an error of order :math:`\mu`, which would give :math:`p = 1/2`, but the curvature along a random
    direction, :math:`\operatorname{tr}(H)/d`, is small against the slope: a larger radius, :math:`p = 2/5`, was the best over
    linear models and multilayer perceptrons of 10 to :math:`10^7` parameters. Along the leading directions of the gradient
    noise the loss is steep and curved, so there :math:`p = 1/2`.

    Args:
        parameters: The point :math:`x`.
        difference: ``"forward"`` or ``"central"``.
        dtype: Type that sets the machine epsilon; by default the coarsest type of the parameters.
        steep: Whether the loss changes more along these directions than along random directions.
        robust: Whether to leave the largest tensor out of the norm, since an embedding may hold nearly all of the norm.

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
    held = [float(torch.linalg.vector_norm(local(p), dtype=torch.float64)) ** 2 for p in parameters]
    norms = shard_group(parameters).total(torch.tensor(held, dtype=torch.float64, device="cpu"))
    squares = max(0.0, float(norms.sum() - (norms.max() if robust else 0.0)))
    epsilon = max(torch.finfo(p.dtype).eps for p in parameters) if dtype is None else torch.finfo(dtype).eps
    exponent = (_STEEP_EXPONENTS if steep else _EXPONENTS)[difference]
    return float(epsilon**exponent * (1 + squares**0.5))


def best_radius(errors: Callable[[Sequence[float]], Sequence[tuple[float, float]]], start: float) -> float:
    r"""Find the radius at which probe differences have the least error, on a ladder of radii around a guess.

    The error of rounding falls as :math:`1/\mu`, and the error of curvature grows with :math:`\mu`. If one of these errors is
    as large as the differences themselves, the differences say nothing. Far from the point a loss may be nearly linear again,
    with slopes that differ from those at the point: there the relative error is small, but the error is not. So among the radii
    whose error is smaller than the differences, the search takes the radius with the least error.

    Args:
        errors: Gives for each of several radii the error, and the error relative to the differences; NaN if they are not known.
        start: The guess. The search tries radii from 1/4096 of the guess up to 16 times the guess, a factor of 4 apart.

    Returns:
        The best radius; if no radius has an error smaller than the differences, the radius with the least relative error.

    Example:
        >>> def errors(radii):
        ...     found = [1e-7 / mu + 10 * mu for mu in radii]
        ...     return [(error, error / 0.5) for error in found]
        >>> round(best_radius(errors, start=0.1), 6)
        9.8e-05
    """
    ladder = [start * FACTOR**step for step in LADDER]
    known = [[math.inf if math.isnan(error) else error for error in both] for both in errors(ladder)]
    tried = dict(zip(ladder, known, strict=True))
    good = [mu for mu in ladder if tried[mu][1] < SMALL]
    return min(good, key=lambda mu: tried[mu][0]) if good else min(ladder, key=lambda mu: tried[mu][1])


def trend_of(up: float, down: float) -> Trend | None:
    r"""Decide whether rounding or curvature dominates the error, from the change of probe differences with the radius.

    Twice the radius halves an error of rounding and doubles an error of curvature. So the change from :math:`\mu/2` to
    :math:`\mu` is twice the change from :math:`\mu` to :math:`2\mu` if rounding dominates, and half of it if curvature
    dominates.

    Args:
        up: Root mean square of :math:`\delta(2\mu) - \delta(\mu)`.
        down: Root mean square of :math:`\delta(\mu) - \delta(\mu/2)`.

    Returns:
        The larger error; None if neither error stands out.
    """
    if not (math.isfinite(up) and math.isfinite(down)) or up == down == 0:
        return None
    return "rounding" if down > 1.5 * up else "curvature" if down < 0.75 * up else None


def followed(mu: float, snr: float | None, trend: Trend | None) -> float:
    """The radius for the next snapshot: doubled or halved if this reduces an error that is not small already.

    Args:
        mu: The last radius.
        snr: Size of the probe differences relative to their error; None if it is not known.
        trend: The larger error; None if neither error stands out.

    Returns:
        The next radius.
    """
    if snr is None or snr >= GOOD_SNR or trend is None:
        return mu
    return 2 * mu if trend == "rounding" else mu / 2
