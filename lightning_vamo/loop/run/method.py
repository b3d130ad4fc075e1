"""What a callback trains with."""

from dataclasses import dataclass

from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.base import Gradient


@dataclass(frozen=True)
class Method:
    """What a callback trains with.

    Attributes:
        name: Name of the callback, for messages.
        gradient: Where the gradient comes from.
        control: What is taken out of the gradient.
        settings: How to probe.
    """

    name: str
    gradient: Gradient
    control: Control
    settings: ProbeSettings

    @property
    def records(self) -> bool:
        """Whether training loaders are to tell their batches, where they can."""
        return self.control.records != "never" or self.gradient.keeps_place
