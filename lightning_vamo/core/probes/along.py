"""Directions that several estimates share."""

from dataclasses import dataclass

from lightning_vamo.core.directions import ProbeDirections


@dataclass(frozen=True)
class Along:
    """Directions, and how far to go along them: a gradient and its control variate have to be estimated along the same ones.

    Attributes:
        directions: The directions.
        mu: Smoothing radius, in units of parameter norm.
    """

    directions: ProbeDirections
    mu: float
