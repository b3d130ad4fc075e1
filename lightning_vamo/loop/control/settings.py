"""The settings of probes: the checked arguments that several callbacks share."""

from dataclasses import dataclass
from typing import Literal

from lightning_vamo.core.control.mixing import Alpha, check_alpha
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections
from lightning_vamo.core.probes.difference import Difference, check_difference
from lightning_vamo.core.probes.radius import check_mu
from lightning_vamo.core.schedules import ConstantProbes, EfficientProbes, ProbeSchedule, check_probes
from lightning_vamo.errors import InvalidArgumentError, shown
from lightning_vamo.loop.sweep.precision import SweepPrecision, check_sweep_precision


@dataclass(frozen=True)
class ProbeSettings:
    """The settings of probes: their number, directions, radius and mixing coefficient.

    :class:`~lightning_vamo.VAMOCallback` explains the other attributes.

    Attributes:
        per_weight: Whether ``mu``, if it is a number, is about the distance that each weight moves, and not the norm of the
            step.

    Raises:
        InvalidArgumentError: If a setting has a value that is not allowed, or if two settings do not go together.
    """

    schedule: ProbeSchedule
    directions: Directions
    mu: float | Literal["auto"]
    alpha: Alpha
    difference: Difference
    sweep_precision: SweepPrecision
    per_weight: bool = False

    def __post_init__(self) -> None:
        check_mu(self.mu)
        check_alpha(self.alpha)
        check_difference(self.difference)
        check_sweep_precision(self.sweep_precision)
        if not isinstance(self.directions, Directions):
            raise InvalidArgumentError(
                f"`directions` must be a family of directions such as GradientSubspaceDirections(), got"
                f" {shown(self.directions)}."
            )
        if isinstance(self.schedule, EfficientProbes) and self.alpha != "adaptive":
            raise InvalidArgumentError(
                "`alpha` must be 'adaptive' where the number of probes is measured, by probes='auto' or EfficientProbes, got"
                f" {self.alpha!r}: set a number, such as probes=1, or leave `alpha` out."
            )

    @property
    def never_probes(self) -> bool:
        """Whether the run is plain first-order training from beginning to end."""
        return isinstance(self.schedule, ConstantProbes) and self.schedule.n == 0

    def most(self, epoch: int) -> int:
        """The number of probes of an epoch; the maximum if the number is chosen by measurement."""
        if isinstance(self.schedule, EfficientProbes):
            return self.schedule.maximum
        return check_probes(f"{type(self.schedule).__name__}.probes_at({epoch})", self.schedule.probes_at(epoch))


PLAIN = ProbeSettings(ConstantProbes(0), GradientSubspaceDirections(), "auto", "adaptive", "forward", None)
"""The settings of methods without probes."""
