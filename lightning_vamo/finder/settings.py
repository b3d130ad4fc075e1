"""The settings of the finder's measurement."""

from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_vamo.core.directions import Directions
from lightning_vamo.core.probes.difference import Difference, check_difference
from lightning_vamo.core.probes.radius import check_mu
from lightning_vamo.errors import InvalidArgumentError, shown
from lightning_vamo.finder.held_out import FEWEST_BATCHES
from lightning_vamo.loop.control.automatic import Auto
from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.carried import Carry
from lightning_vamo.loop.control.chosen import Chosen
from lightning_vamo.loop.sweep.precision import SweepPrecision, check_sweep_precision


@dataclass(frozen=True)
class Settings:
    """The settings of the measurement: the arguments of :func:`~lightning_vamo.find_probes`.

    Raises:
        InvalidArgumentError: If a setting is not allowed.
    """

    maximum: int
    batches: int
    directions: Directions
    mu: float | Literal["auto"]
    difference: Difference
    sweep_precision: SweepPrecision
    seed: int | None
    control: Control
    """The control variate of the later training."""
    accumulation: GradientAccumulationScheduler | None = None
    """The Trainer's scheduler of gradient accumulation, if it has one."""

    def __post_init__(self) -> None:
        for name, value, fewest in (("maximum", self.maximum, 1), ("batches", self.batches, FEWEST_BATCHES)):
            if isinstance(value, bool) or not isinstance(value, int) or value < fewest:
                raise InvalidArgumentError(f"`{name}` must be a whole number >= {fewest}, got {value!r}.")
        if not isinstance(self.directions, Directions) or not self.directions.learns:
            raise InvalidArgumentError(
                f"`directions` must be a family that learns, such as GradientSubspaceDirections(), got"
                f" {shown(self.directions)}."
                " Random directions are always measured too."
            )
        check_mu(self.mu)
        check_difference(self.difference)
        check_sweep_precision(self.sweep_precision)

    @property
    def carries(self) -> bool:
        """Whether rows may be carried in the later training."""
        return any(isinstance(option, Carry) for option in self._options)

    @property
    def only_carries(self) -> bool:
        """Whether the later training carries rows if it corrects its gradients at all."""
        return all(isinstance(option, Carry) for option in self._options)

    @property
    def sweeping(self) -> Control:
        """The control variate that determines the work of a sweep's rows: carried rows have figures of their own."""
        return Auto() if self.only_carries else self.control

    @property
    def _options(self) -> list[Control]:
        if isinstance(self.control, Chosen):
            return [option for option in (self.control.carry, self.control.sweep) if option is not None]
        return [self.control]

    def batches_per_step(self, trainer: Trainer) -> int:
        """Number of batches whose gradients an optimizer step of the present epoch accumulates."""
        if self.accumulation is None:
            return trainer.accumulate_grad_batches
        return self.accumulation.get_accumulate_grad_batches(trainer.current_epoch)
