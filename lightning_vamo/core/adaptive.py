"""The public import path of :mod:`lightning_vamo.core.control.coefficients`."""

from lightning_vamo.core.control.coefficients import Coefficient, Constant, LinearDecay, Regression

__all__ = ["Coefficient", "Constant", "LinearDecay", "Regression"]
