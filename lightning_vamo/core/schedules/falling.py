"""Whether noise is what limits a training, by how fast the training loss falls from epoch to epoch."""

FAST = 0.06
"""While the loss falls by more than this share of itself in an epoch, noise is taken not to slow the training."""


def noise_limits(fall: float | None) -> bool:
    """Whether less noise may speed up the training: less noise helps only where noise is what slows the training.

    Args:
        fall: By what share of itself the training loss falls from one epoch to the next; None if that is not known.

    Returns:
        Whether the loss falls by 6 % of itself at most, or the fall is not known.
    """
    return fall is None or fall <= FAST


def slowest(fall: float | None, since: float | None) -> float | None:
    """The slower of two falls, of which either may be unknown."""
    known = [each for each in (fall, since) if each is not None]
    return min(known, default=None)
