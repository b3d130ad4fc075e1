"""The public import path of :mod:`lightning_vamo.core.control.correction`."""

from lightning_vamo.core.control.correction import Correction

__all__ = ["Correction"]
