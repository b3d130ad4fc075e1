"""Families of probe directions, one per file."""

from lightning_vamo.core.directions.base import Directions, ProbeDirections
from lightning_vamo.core.directions.coordinate import CoordinateDirections
from lightning_vamo.core.directions.gaussian import GaussianDirections
from lightning_vamo.core.directions.orthonormal import OrthonormalDirections
from lightning_vamo.core.directions.rademacher import RademacherDirections
from lightning_vamo.core.directions.sphere import SphereDirections

__all__ = [
    "CoordinateDirections",
    "Directions",
    "GaussianDirections",
    "OrthonormalDirections",
    "ProbeDirections",
    "RademacherDirections",
    "SphereDirections",
]
