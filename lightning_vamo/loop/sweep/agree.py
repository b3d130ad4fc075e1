"""Agreement between ranks: all ranks must visit the same points in the same order."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.errors import UnsupportedError


def total(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of numbers over the ranks, the same on each rank.

    Args:
        trainer: The trainer; every rank has to call this.
        values: This rank's numbers, float64, on any device.

    Returns:
        The sums, on the CPU.
    """
    if trainer.world_size == 1:
        return values.cpu()
    shared = values.to(trainer.strategy.root_device, copy=True)
    torch.distributed.all_reduce(shared)
    return shared.cpu()


def least(trainer: Trainer, value: int) -> int:
    """The least of a whole number over the ranks.

    Args:
        trainer: The trainer; every rank has to call this.
        value: This rank's number.

    Returns:
        The least number.
    """
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(value, dtype=torch.int64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MIN)
    return int(shared)


def check_batches(trainer: Trainer, count: int) -> None:
    """Refuse ranks with different numbers of batches, before a rank waits for another rank.

    Args:
        trainer: The trainer; every rank has to call this.
        count: How many batches this rank's epoch has.

    Raises:
        UnsupportedError: On all ranks, if the numbers differ.
    """
    fewest, most = least(trainer, count), -least(trainer, -count)
    if fewest != most:
        raise UnsupportedError(
            f"The ranks have different numbers of training batches, from {fewest} to {most}, but each correction needs one"
            " batch of every rank: give each rank as many samples, as DistributedSampler does, or set"
            f" Trainer(limit_train_batches={fewest})."
        )
