"""The settings of the finder's measurement."""

from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_vamo.core.directions import Directions
from lightning_vamo.core.probes.difference import Difference, check_difference
from lightning_vamo.core.probes.radius import check_mu
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.finder.held_out import FEWEST_BATCHES
from lightning_vamo.loop.control.base import Control
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
    """The control variate of the later training, which determines the work."""
    accumulation: GradientAccumulationScheduler | None = None
    """The Trainer's scheduler of gradient accumulation, if it has one."""
    carries: bool = False
    """Whether rows may be carried in the later training."""

    def __post_init__(self) -> None:
        for name, value, fewest in (("maximum", self.maximum, 1), ("batches", self.batches, FEWEST_BATCHES)):
            if isinstance(value, bool) or not isinstance(value, int) or value < fewest:
                raise InvalidArgumentError(f"`{name}` must be a whole number >= {fewest}, got {value!r}.")
        if not isinstance(self.directions, Directions) or not self.directions.learns:
            raise InvalidArgumentError(
                f"`directions` must be a family that learns, such as GradientSubspaceDirections(), got {self.directions!r}."
                " Random directions are always measured too."
            )
        check_mu(self.mu)
        check_difference(self.difference)
        check_sweep_precision(self.sweep_precision)

    def batches_per_step(self, trainer: Trainer) -> int:
        """Number of batches whose gradients an optimizer step of the present epoch accumulates."""
        if self.accumulation is None:
            return trainer.accumulate_grad_batches
        return self.accumulation.get_accumulate_grad_batches(trainer.current_epoch)
