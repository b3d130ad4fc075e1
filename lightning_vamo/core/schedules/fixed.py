"""Schedules whose numbers of probes are fixed before training."""

import math

from lightning_vamo.core.schedules.base import ProbeSchedule, check_probes
from lightning_vamo.core.schedules.efficient import EfficientProbes
from lightning_vamo.errors import InvalidArgumentError


class ConstantProbes(ProbeSchedule):
    """The same number of probes in every epoch.

    Args:
        n: The number of probes, at least 0.

    Raises:
        InvalidArgumentError: If ``n`` is not allowed.

    Example:
        >>> [ConstantProbes(4).probes_at(epoch) for epoch in range(3)]
        [4, 4, 4]
    """

    def __init__(self, n: int) -> None:
        self.n = check_probes("n", n, 0)

    def probes_at(self, epoch: int) -> int:
        """See :meth:`ProbeSchedule.probes_at`."""
        return self.n


class LinearProbes(ProbeSchedule):
    """A number of probes that goes from ``start`` to ``end`` in equal steps over ``epochs`` epochs, and then stays.

    Args:
        start: Probes in epoch 0.
        end: Probes from epoch ``epochs - 1`` on.
        epochs: Length of the ramp, at least 1.

    Raises:
        InvalidArgumentError: If an argument is not allowed.

    Example:
        >>> [LinearProbes(start=0, end=8, epochs=5).probes_at(epoch) for epoch in range(6)]
        [0, 2, 4, 6, 8, 8]
    """

    def __init__(self, start: int, end: int, epochs: int) -> None:
        self.start = check_probes("start", start, 0)
        self.end = check_probes("end", end, 0)
        self.epochs = check_probes("epochs", epochs, 1)

    def probes_at(self, epoch: int) -> int:
        """See :meth:`ProbeSchedule.probes_at`."""
        if epoch >= self.epochs - 1:
            return self.end
        return round(self.start + (self.end - self.start) * epoch / (self.epochs - 1))


class ExponentialProbes(ProbeSchedule):
    """A number of probes that is multiplied by ``factor`` every few epochs, up to a maximum.

    Args:
        start: Probes in epoch 0.
        factor: Growth factor, above 0; with a factor below 1 the number shrinks.
        every_n_epochs: Epochs between two multiplications, at least 1.
        maximum: The largest number of probes, at least 0.

    Raises:
        InvalidArgumentError: If an argument is not allowed.

    Example:
        >>> [ExponentialProbes(start=1, factor=2.0, every_n_epochs=2, maximum=4).probes_at(epoch) for epoch in range(6)]
        [1, 1, 2, 2, 4, 4]
    """

    def __init__(self, start: int, factor: float, every_n_epochs: int, maximum: int) -> None:
        self.start = check_probes("start", start, 0)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
            raise InvalidArgumentError(f"`factor` must be a positive, finite number, got {factor!r}.")
        self.factor = factor
        self.every_n_epochs = check_probes("every_n_epochs", every_n_epochs, 1)
        self.maximum = check_probes("maximum", maximum, 0)

    def probes_at(self, epoch: int) -> int:
        """See :meth:`ProbeSchedule.probes_at`."""
        exponent = epoch // self.every_n_epochs
        # Compared by logarithms first, since a power of a large epoch would overflow.
        if self.start > 0 and math.log(self.start) + exponent * math.log(self.factor) > math.log(self.maximum + 1):
            return self.maximum
        return min(round(self.start * self.factor**exponent), self.maximum) if self.start else 0


def as_schedule(probes: object) -> ProbeSchedule:
    """Turn what a user may pass for ``probes`` into a schedule.

    Args:
        probes: A number of probes, ``"auto"``, or a schedule.

    Returns:
        The schedule; a number becomes :class:`ConstantProbes`, and ``"auto"`` becomes
        :class:`~lightning_vamo.core.schedules.EfficientProbes`.

    Raises:
        InvalidArgumentError: If ``probes`` is neither.
    """
    if isinstance(probes, ProbeSchedule) and not isinstance(probes, type):
        return probes
    if isinstance(probes, str) and probes == "auto":
        return EfficientProbes()
    return ConstantProbes(check_probes("probes", probes, 0, ", 'auto' or a schedule such as LinearProbes(0, 8, 10)"))
