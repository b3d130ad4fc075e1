"""The base class of schedules, which set the number of probes of each epoch."""

from abc import ABC, abstractmethod

from lightning_vamo.errors import InvalidArgumentError, shown


class ProbeSchedule(ABC):
    """Base class of schedules, which give a number of probes for each epoch.

    Every class with a method ``probes_at`` counts as a subclass. A class that derives from this class can also be given by its
    short name on the command line.
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


def check_probes(name: str, value: object, least: int = 0, otherwise: str = "") -> int:
    """Refuse a number of probes that is not whole or is too small.

    Args:
        name: Name of the argument, for the message.
        value: The value.
        least: The smallest number that is allowed.
        otherwise: Other values that are allowed, for the message.

    Returns:
        The value.

    Raises:
        InvalidArgumentError: If the value is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidArgumentError(f"`{name}` must be a whole number >= {least}{otherwise}, got {shown(value)}.")
    return value
