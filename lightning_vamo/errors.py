"""The package's errors: ``except VAMOError`` catches all of them and nothing else."""

import re


class VAMOError(Exception):
    """Base class of every error that the package raises on purpose."""


class InvalidArgumentError(VAMOError, ValueError):
    """An argument has a value that is not allowed; the message names the argument, the value, and what is allowed."""


class UnsupportedError(VAMOError, RuntimeError):
    """The model, the data or the Trainer uses a feature that the method does not support; the message says what to change."""


class NonFiniteLossError(VAMOError, ArithmeticError):
    """A loss evaluated at the snapshot, or at a perturbed point around it, is NaN or infinite."""


def shown(value: object) -> str:
    """A value as it stands in a message: what ``repr`` gives, but without an address in memory."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
