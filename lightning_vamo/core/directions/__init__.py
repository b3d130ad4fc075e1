"""Families of probe directions: random, learned, coordinate and masked directions."""

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.coordinate import CoordinateDirections
from lightning_vamo.core.directions.family import Directions
from lightning_vamo.core.directions.learned.subspace import GradientSubspaceDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.directions.masked import MaskedDirections
from lightning_vamo.core.directions.random.gaussian import GaussianDirections
from lightning_vamo.core.directions.random.orthonormal import OrthonormalDirections
from lightning_vamo.core.directions.random.rademacher import RademacherDirections
from lightning_vamo.core.directions.random.sphere import SphereDirections

__all__ = [
    "CoordinateDirections",
    "Directions",
    "GaussianDirections",
    "GradientSubspaceDirections",
    "Learner",
    "MaskedDirections",
    "OrthonormalDirections",
    "ProbeDirections",
    "RademacherDirections",
    "SphereDirections",
]
