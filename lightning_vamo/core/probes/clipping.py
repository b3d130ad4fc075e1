"""Bounds for probe differences: an infinite, NaN or extreme loss must not move the weights far."""

import math
from collections.abc import Sequence

from lightning_vamo.errors import InvalidArgumentError


def check_clip(clip: float | None) -> None:
    """Refuse a bound that is neither a positive, finite number nor None.

    Args:
        clip: The bound.

    Raises:
        InvalidArgumentError: If the bound is not allowed.
    """
    if clip is None:
        return
    if isinstance(clip, bool) or not isinstance(clip, (int, float)) or not 0 < clip < float("inf"):
        raise InvalidArgumentError(f"`clip` must be a positive, finite number or None, got {clip!r}.")


def clipped(deltas: Sequence[float], bound: float | None) -> list[float]:
    r"""Bound probe differences, and set probe differences to zero that are not finite.

    .. math:: \delta_j \leftarrow \max(-c, \min(c, \delta_j))

    Args:
        deltas: Probe differences; numbers of Python, since for so few of them operations on tensors take longer.
        bound: :math:`c`; None only sets numbers to zero that are not finite.

    Returns:
        The bounded differences.

    References:
        Shang et al., "Fine-tuning Quantized Neural Networks with Zeroth-order Optimization", arXiv:2505.13430, which clips the
        directional derivative.

    Example:
        >>> clipped([0.5, -3.0, float("nan")], 1.0)
        [0.5, -1.0, 0.0]
    """
    finite = [delta if math.isfinite(delta) else 0.0 for delta in deltas]
    return finite if bound is None else [max(-bound, min(bound, delta)) for delta in finite]
