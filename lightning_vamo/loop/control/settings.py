"""What a run is trained with: the arguments of VAMOCallback, checked."""

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_vamo.core.control.mixing import Alpha, check_alpha
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.probes.difference import Difference, check_difference
from lightning_vamo.core.probes.radius import check_mu
from lightning_vamo.core.schedules import ConstantProbes, EfficientProbes, ProbeSchedule, check_probes
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop.sweep.precision import SweepPrecision, check_sweep_precision

Control = Literal["auto", "replay", "recompute"]


@dataclass(frozen=True)
class VAMOSettings:
    """The arguments of :class:`~lightning_vamo.VAMOCallback`, which explains them; ``control`` is what follows from the others.

    Raises:
        InvalidArgumentError: If one has a value that is not allowed, or some do not go together.
    """

    schedule: ProbeSchedule
    directions: Directions
    mu: float | Literal["auto"]
    alpha: Alpha
    difference: Difference
    control: Control
    every_n_epochs: int
    every_n_train_steps: int | None
    seed: int | None
    sweep_precision: SweepPrecision
    carry: bool
    sweep: bool

    def __post_init__(self) -> None:
        check_mu(self.mu)
        check_alpha(self.alpha)
        check_difference(self.difference)
        check_sweep_precision(self.sweep_precision)
        if not isinstance(self.directions, Directions):
            raise InvalidArgumentError(
                f"`directions` must be a family such as GradientSubspaceDirections(), got {self.directions!r}."
            )
        if not _is_whole(self.every_n_epochs) or self.every_n_epochs < 1:
            raise InvalidArgumentError(f"`every_n_epochs` must be a whole number >= 1, got {self.every_n_epochs!r}.")
        self._check_control()
        self._check_carry()
        if self.seed is not None and not _is_whole(self.seed):
            raise InvalidArgumentError(f"`seed` must be a whole number or None, got {self.seed!r}.")
        if isinstance(self.schedule, EfficientProbes) and self.alpha != "adaptive":
            raise InvalidArgumentError(
                f'`alpha` must be "adaptive", whose factors EfficientProbes goes by, got {self.alpha!r}.'
            )
        if self.carry:
            object.__setattr__(self, "control", "replay")
        elif self.every_n_train_steps is not None:
            # Snapshots that do not come at an epoch's first batch leave no epoch to replay.
            object.__setattr__(self, "control", "recompute")

    def _check_control(self) -> None:
        steps = self.every_n_train_steps
        if self.control not in get_args(Control):
            raise InvalidArgumentError(f"`control` must be one of {get_args(Control)}, got {self.control!r}.")
        if steps is None:
            return
        if not _is_whole(steps) or steps < 1:
            raise InvalidArgumentError(f"`every_n_train_steps` must be a whole number >= 1 or None, got {steps!r}.")
        if self.control == "replay":
            raise InvalidArgumentError(
                f"`every_n_train_steps={steps}` needs control='recompute', got control='replay', which sweeps the batches of"
                " whole epochs: set control='recompute', or every_n_epochs."
            )
        if self.every_n_epochs != 1:
            raise InvalidArgumentError(
                f"`every_n_train_steps={steps}` and `every_n_epochs={self.every_n_epochs}` both say when to take a snapshot:"
                " keep one of them."
            )

    def _check_carry(self) -> None:
        for name, value in (("carry", self.carry), ("sweep", self.sweep)):
            if not isinstance(value, bool):
                raise InvalidArgumentError(f"`{name}` must be True or False, got {value!r}.")
        if self.carry and (self.control == "recompute" or self.every_n_train_steps is not None):
            steps = self.every_n_train_steps
            other = '`control="recompute"`' if steps is None else f"`every_n_train_steps={steps}`"
            raise InvalidArgumentError(
                f"`carry=True` got {other}, with which every row is made anew, so there is none to carry: keep one of them."
            )
        if not self.sweep and not self.carry:
            raise InvalidArgumentError(
                "`sweep=False` got `carry=False`, and without a sweep only carried rows can correct gradients: set"
                " `carry=True`."
            )
        if self.carry and self.sweep and self.every_n_epochs < 2:
            raise InvalidArgumentError(
                f"`carry=True` got `every_n_epochs={self.every_n_epochs}`, whose sweeps replace all rows before any is used"
                " again: set `every_n_epochs` to 2 or more, or `sweep=False`."
            )

    @property
    def never_probes(self) -> bool:
        """Whether the run is plain first-order training from beginning to end."""
        return isinstance(self.schedule, ConstantProbes) and self.schedule.n == 0

    def sweeps(self, recomputes: bool, twice: bool, steps: float) -> float:
        """How often a batch is probed per epoch, on average: in a sweep, and in its row where rows are recomputed.

        Args:
            recomputes: Whether each step recomputes its row.
            twice: Whether the data can be read twice, for a sweep.
            steps: Optimizer steps per epoch.

        Returns:
            The number; 0 where nothing is ever probed.
        """
        if not self.sweep:
            return 0.0
        if not recomputes:
            return 1 / self.every_n_epochs
        if not twice:
            return 1.0
        return 1 + (1 / self.every_n_epochs if self.every_n_train_steps is None else steps / self.every_n_train_steps)

    def most(self, epoch: int) -> int:
        """The number of probes of an epoch; the largest, where the number is chosen by measurement."""
        if isinstance(self.schedule, EfficientProbes):
            return self.schedule.maximum
        return check_probes(f"{type(self.schedule).__name__}.probes_at({epoch})", self.schedule.probes_at(epoch))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
