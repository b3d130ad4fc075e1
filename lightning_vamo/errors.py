"""The package's errors: ``except VAMOError`` catches all of them and nothing else."""


class VAMOError(Exception):
    """Base class of every error that the package raises on purpose."""


class InvalidArgumentError(VAMOError, ValueError):
    """An argument has a value that is not allowed; the message names the argument, the value, and what is allowed."""


class UnsupportedError(VAMOError, RuntimeError):
    """The model, the data or the Trainer uses a feature that the method does not support; the message says what to change."""


class NonFiniteLossError(VAMOError, ArithmeticError):
    """A loss evaluated at the snapshot, or at a perturbed point around it, is NaN or infinite."""
