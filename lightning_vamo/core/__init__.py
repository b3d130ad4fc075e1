"""The mathematics of VAMO in pure PyTorch; this folder never imports Lightning."""

from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.gradient.estimate import estimate_gradient

__all__ = ["ControlVariate", "estimate_gradient"]
