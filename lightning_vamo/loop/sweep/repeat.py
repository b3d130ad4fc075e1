"""Check that a loss depends on the parameters alone: the same batch at the same weights gives the same loss."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop.sweep.agree import total
from lightning_vamo.loop.sweep.batch import SweptBatch

ROUNDINGS = 16
"""By how many rounding errors two evaluations may differ: kernels that add numbers in any order differ by a few."""


class ChangingLossError(UnsupportedError):
    """A second evaluation of a batch, at the same parameters and with the same random numbers, gave another loss."""


def check_repeats(trainer: Trainer, batch: SweptBatch) -> None:
    """Evaluate a batch twice at the present parameters, and compare the losses.

    Args:
        trainer: The trainer; every rank has to call this, for the same batch of the plan.
        batch: The batch, which has been evaluated once at the present parameters.

    Raises:
        ChangingLossError: On all ranks, if the two losses of a rank differ by more than rounding errors.
    """
    again = batch.loss()
    differs = batch.origin is not None and again is not None and _differ(batch.origin, again, ROUNDINGS * batch.rounding)
    if float(total(trainer, torch.tensor(float(differs), dtype=torch.float64, device="cpu"))) == 0:
        return
    first, second = ("none" if loss is None else f"{float(loss):.6g}" for loss in (batch.origin, again))
    raise ChangingLossError(
        f"A training batch has the loss {first} at first, but {second} when it is evaluated again with the same weights and"
        " random numbers: `training_step` depends on something that changes from call to call and cannot be put back."
    )


def _differ(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two losses differ by more than a relative tolerance; two NaN, or two equal infinities, do not differ."""
    return not torch.allclose(first, second, rtol=tolerance, atol=0.0, equal_nan=True)
