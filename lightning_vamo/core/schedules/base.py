"""The base class of schedules of the number of probes."""

from abc import ABC, abstractmethod

from lightning_vamo.errors import InvalidArgumentError


class ProbeSchedule(ABC):
    """A number of probes for each epoch.

    A class with a method ``probes_at`` counts as a subclass; one that derives from this class has a short name on the command
    line too.
    """

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        """Whether a class counts as a subclass."""
        return callable(getattr(other, "probes_at", None)) if cls is ProbeSchedule else NotImplemented

    @abstractmethod
    def probes_at(self, epoch: int) -> int:
        """The number of probes for an epoch.

        Args:
            epoch: The epoch that starts, counted from 0.

        Returns:
            ``q >= 0``; 0 means plain first-order training.
        """


def check_probes(name: str, value: object, least: int = 0) -> int:
    """Refuse a number of probes that is not whole or is too small.

    Args:
        name: What to call the value in the message.
        value: The value.
        least: The smallest that is allowed.

    Returns:
        The value.

    Raises:
        InvalidArgumentError: If it is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(f"`{name}` must be a whole number >= {least}, got {value!r}.")
    return value
