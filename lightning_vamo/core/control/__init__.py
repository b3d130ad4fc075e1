"""Control variates: vectors that are subtracted from a gradient to remove noise; pure tensor arithmetic."""

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Coefficient, Constant, LinearDecay, Regression
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import Alpha, coefficient_of, effective_coefficient
from lightning_vamo.core.control.rows import Rows
from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.control.table import ControlVariate

__all__ = [
    "Alpha",
    "CarriedRows",
    "Coefficient",
    "Constant",
    "ControlVariate",
    "Correction",
    "LinearDecay",
    "RecomputedControlVariate",
    "Regression",
    "Rows",
    "coefficient_of",
    "effective_coefficient",
]
