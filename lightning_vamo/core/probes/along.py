"""Directions that several estimates share."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections


@dataclass(frozen=True)
class Along:
    """Directions and their radius: a gradient and its control variate must be estimated along the same directions.

    Attributes:
        parameters: What they are directions of.
        directions: The directions.
        mu: Smoothing radius, in units of parameter norm.
    """

    parameters: Sequence[Tensor]
    directions: ProbeDirections
    mu: float
