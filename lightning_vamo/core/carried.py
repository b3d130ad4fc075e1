"""The public import path of :mod:`lightning_vamo.core.control.carried`."""

from lightning_vamo.core.control.carried import CarriedRows

__all__ = ["CarriedRows"]
