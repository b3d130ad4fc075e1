"""Families of probe directions, one per file."""

from lightning_vamo.core.directions.base import Directions, ProbeDirections
from lightning_vamo.core.directions.coordinate import CoordinateDirections
from lightning_vamo.core.directions.gaussian import GaussianDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.directions.orthonormal import OrthonormalDirections
from lightning_vamo.core.directions.rademacher import RademacherDirections
from lightning_vamo.core.directions.sphere import SphereDirections
from lightning_vamo.core.directions.subspace import GradientSubspaceDirections

__all__ = [
    "CoordinateDirections",
    "Directions",
    "GaussianDirections",
    "GradientSubspaceDirections",
    "Learner",
    "OrthonormalDirections",
    "ProbeDirections",
    "RademacherDirections",
    "SphereDirections",
]
