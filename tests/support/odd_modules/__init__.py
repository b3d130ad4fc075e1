"""Modules with odd state: each keeps something, in a place of its own, that its step changes and its loss depends on."""

from tests.support.odd_modules import classes, containers, functions, generators, numbers, objects, optimizers, submodules
from tests.support.odd_modules.base import FEATURES, KINDS
from tests.support.odd_modules.unreachable import UNREACHABLE

TABLES = (classes, containers, functions, generators, numbers, objects, optimizers, submodules)
"""What fills ``KINDS``."""

__all__ = ["FEATURES", "KINDS", "TABLES", "UNREACHABLE"]
