"""The parts of a method: its gradient, its control variate and its settings."""

from dataclasses import dataclass

from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.base import Gradient


@dataclass(frozen=True)
class Method:
    """The parts of a method: its gradient, its control variate and its settings.

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
        """Whether training loaders must record their batches, if they can."""
        return self.control.records != "never" or self.gradient.keeps_place
