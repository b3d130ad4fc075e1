"""The parts of a method: its gradient, its control variate and its settings."""

from dataclasses import dataclass

from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.settings import ProbeSettings
from lightning_vamo.loop.gradient.base import Gradient
from lightning_vamo.loop.ledger.ways import VAMO_WAYS, Ways


@dataclass(frozen=True)
class Method:
    """The parts of a method: its gradient, its control variate and its settings.

    Attributes:
        name: Name of the callback, for messages.
        gradient: Where the gradient comes from.
        control: The control variate that is subtracted from the gradient.
        settings: The settings of probes.
        prefix: The part before the slash in the names of logged figures.
        ways: The callback's arguments that warnings recommend.
    """

    name: str
    gradient: Gradient
    control: Control
    settings: ProbeSettings
    prefix: str = "vamo"
    ways: Ways = VAMO_WAYS

    @property
    def records(self) -> bool:
        """Whether training loaders must record their batches, if they can."""
        return self.control.records != "never" or self.gradient.keeps_place

    @property
    def must_record(self) -> bool:
        """Whether training loaders that cannot record their batches are refused."""
        return self.control.records == "always"

    @property
    def leaves_out_together(self) -> bool:
        """Whether ranks tell each other of each batch that differs; without a backward pass they exchange little else."""
        return self.control.watches and not self.gradient.uses_backward
