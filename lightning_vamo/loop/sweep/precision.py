"""The floating-point precision of the sweep's forward passes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat

SweepPrecision = Literal["32-true"] | None


def check_sweep_precision(precision: SweepPrecision) -> None:
    """Refuse an unknown precision.

    Args:
        precision: ``"32-true"`` or None.

    Raises:
        InvalidArgumentError: If ``precision`` is something else.
    """
    if precision not in ("32-true", None):
        raise InvalidArgumentError(f"`sweep_precision` must be '32-true' or None, got {precision!r}.")


def check_float32(trainer: Trainer, parameters: Sequence[Tensor]) -> None:
    """Refuse a float32 sweep of a model that is not in float32.

    Args:
        trainer: The trainer.
        parameters: The probed parameters.

    Raises:
        UnsupportedError: If the parameters have another type.
    """
    others = sorted({str(parameter.dtype) for parameter in parameters} - {"torch.float32"})
    if others:
        raise UnsupportedError(
            f"`sweep_precision='32-true'` needs float32 parameters, but Trainer(precision={trainer.precision!r}) trains"
            f" parameters of type {', '.join(others)}: leave `sweep_precision` out, or train with the precision '32-true',"
            " 'bf16-mixed' or '16-mixed'."
        )


def is_mixed(trainer: Trainer, sweep_precision: SweepPrecision) -> bool:
    """Whether the sweep's forward passes run under autocast."""
    return sweep_precision is None and compat.autocast_dtype(trainer) is not None


def uses_tf32(trainer: Trainer) -> bool:
    """Whether matrix products of float32 numbers are rounded to TF32, which the user may allow on CUDA devices."""
    return trainer.strategy.root_device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"


def arithmetic(trainer: Trainer, sweep_precision: SweepPrecision) -> torch.dtype | None:
    """The type whose machine epsilon is the rounding error of the sweep's losses.

    Args:
        trainer: The trainer.
        sweep_precision: The sweep's own precision; None for the Trainer's precision.

    Returns:
        The type; None for the type of the parameters; float16 for TF32, which has no type of its own, but the same mantissa.
    """
    if is_mixed(trainer, sweep_precision):
        return compat.autocast_dtype(trainer)
    in_float32 = sweep_precision == "32-true" or str(trainer.precision) == "32-true"
    return torch.float16 if in_float32 and uses_tf32(trainer) else None


def outside_precision_context(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Leave the strategy's context of ``training_step``: automatic steps run only their forward pass in this context.

    Args:
        device: The module's device.
        dtype: The default type to return to.

    Returns:
        The context.
    """
    if torch.get_default_dtype() is dtype and not torch.is_autocast_enabled(device.type):
        return nullcontext()  # most often: to leave the context takes a while
    return _outside(device, dtype)


@contextmanager
def _outside(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    inside = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast(device.type, enabled=False, cache_enabled=True):
            yield
    finally:
        torch.set_default_dtype(inside)
