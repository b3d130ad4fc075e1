"""Exchange a few numbers of a batch between all ranks."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def gathered(trainer: Trainer, values: Tensor) -> Tensor:
    """The numbers of all ranks, bit for bit the same on each rank.

    Args:
        trainer: The trainer; every rank has to call this function.
        values: This rank's numbers, shape ``(n,)``, float64, on the CPU.

    Returns:
        Shape ``(ranks, n)``, on the CPU.
    """
    if trainer.world_size == 1:
        return values.unsqueeze(0)
    own = values.to(trainer.strategy.root_device)
    parts = [torch.empty_like(own) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, own)
    return torch.stack(parts).cpu()
