"""What less noise is worth while the training loss falls from epoch to epoch."""

# While the loss falls by more than the first share of itself in an epoch, noise is not all that stands between the weights and
# a lower loss; while the loss falls by more than the second, noise hardly matters.
_SLOW, FAST = 0.03, 0.06


def noise_counts(fall: float | None) -> float:
    r"""How much of the noise's removal counts: less noise speeds up a training only where noise is what slows the training.

    Args:
        fall: :math:`p`, by what share of itself the training loss falls from one epoch to the next; None if that is not known.

    Returns:
        1 up to :math:`p = 3\,\%`, then :math:`0.03/p`, and 0 above 6 %.
    """
    if fall is None or fall <= _SLOW:
        return 1.0
    return _SLOW / fall if fall <= FAST else 0.0


def fall_to_pay(removed: float, price: float) -> float:
    """The fall of the loss up to which the removal of noise is worth its price.

    Args:
        removed: The share of the noise. If noise is all that limits, its removal must be worth the price.
        price: The price, above 1: the work of a step, relative to a plain one.

    Returns:
        The fall, at most 6 %; see :func:`noise_counts`.
    """
    return min(FAST, _SLOW * removed / (1 - 1 / price))


def slowest(fall: float | None, since: float | None) -> float | None:
    """The slower of two falls, of which either may be unknown."""
    known = [each for each in (fall, since) if each is not None]
    return min(known, default=None)
