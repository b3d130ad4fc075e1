r"""The mixing coefficient :math:`\alpha`: the share of the control variate that is subtracted."""

import math
from typing import Literal, get_args

from lightning_vamo.core.control.coefficients import Coefficient, LinearDecay, Regression
from lightning_vamo.errors import InvalidArgumentError, shown

Named = Literal["theory", "adaptive", "linear-decay"]


Alpha = float | Named


def is_number(alpha: object) -> bool:
    """Whether a mixing coefficient is a finite, non-negative number."""
    return isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and math.isfinite(alpha) and alpha >= 0


def check_alpha(alpha: object) -> None:
    r"""Refuse a mixing coefficient that is neither a finite, non-negative number nor a known name.

    Args:
        alpha: The mixing coefficient.

    Raises:
        InvalidArgumentError: If ``alpha`` is not allowed.
    """
    if isinstance(alpha, str) and alpha in get_args(Named):
        return
    if not is_number(alpha):
        names = ", ".join(map(repr, get_args(Named)))
        raise InvalidArgumentError(f"`alpha` must be one of {names}, or a finite number >= 0, got {shown(alpha)}.")


def effective_coefficient(alpha: Alpha, count: int, dimension: int) -> float:
    r"""The factor :math:`\beta = \alpha\,d/q` of the centred probe differences in VAMO's gradient.

    .. math:: v = \nabla f_B(x) - \beta \sum_j (\delta_{B,j} - \bar\delta_j)\, u_j

    The theory sets :math:`\alpha = q/d`, that is :math:`\beta = 1`: the correction removes all noise along the probed
    directions. For orthonormal directions, exact differences and :math:`x = \tilde x`, the share :math:`(1-\beta)^2` of the
    noise stays in a direction, so no :math:`\beta` below 0 or above 2 can help.

    Args:
        alpha: The mixing coefficient. A named coefficient starts from the theory's value.
        count: ``q``, the number of probes.
        dimension: ``d``, the number of trainable parameters.

    Returns:
        The coefficient, without unit.

    References:
        Chen & Ma, arXiv:2505.13954: :math:`\alpha = 1/d` for the two-point, :math:`q/d` for the multi-point estimator.
    """
    return 1.0 if isinstance(alpha, str) else alpha * dimension / count


def coefficient_of(alpha: Alpha, count: int, before: Coefficient | None) -> Coefficient | None:
    """The object that gives the coefficient of each step.

    Args:
        alpha: The mixing coefficient.
        count: ``q``, the number of probes.
        before: The object that gave the coefficients up to now; ``"adaptive"`` continues with its sums.

    Returns:
        The object; None if the coefficient does not change.
    """
    if alpha == "linear-decay":
        return LinearDecay()
    if alpha == "adaptive":
        return before.resized(count) if isinstance(before, Regression) else Regression(count)
    return None
