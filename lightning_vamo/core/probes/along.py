"""Directions that several estimates share."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_vamo.core.directions import ProbeDirections


@dataclass(frozen=True)
class Along:
    """Directions and their radius, which a gradient estimate and its control variate must share.

    Attributes:
        parameters: The parameters that the directions belong to.
        directions: The directions.
        mu: Smoothing radius, in units of parameter norm.
    """

    parameters: Sequence[Tensor]
    directions: ProbeDirections
    mu: float
