"""Probes: points around a snapshot, the losses there, and the finite differences that they give."""

from lightning_vamo.core.probes.difference import (
    Difference,
    as_tensor,
    check_difference,
    perturbed_losses,
    probe_differences,
    probe_losses,
    scalar,
)
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import Trend, auto_mu, best_radius, check_mu, trend_of

__all__ = [
    "Difference",
    "Point",
    "Trend",
    "as_tensor",
    "auto_mu",
    "best_radius",
    "check_difference",
    "check_mu",
    "perturbed_losses",
    "probe_differences",
    "probe_losses",
    "scalar",
    "trend_of",
]
