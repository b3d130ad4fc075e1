"""Detect data that gives other batches when the data is read again."""

import torch
from lightning.pytorch import Trainer

from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.sweep.agree import total


def differs_anywhere(trainer: Trainer, differs: bool) -> bool:
    """Whether, on any rank, the present batch differs from the batch that the sweep saw in its place.

    Args:
        trainer: The trainer; every rank has to call this function.
        differs: Whether the batch of this rank differs.

    Returns:
        True or False, the same on every rank.
    """
    if trainer.world_size == 1:
        return differs
    return bool(total(trainer, torch.tensor(float(differs), dtype=torch.float64)) > 0)


def gives_other_batches(trainer: Trainer, snapshot: Snapshot | None, unused: int) -> bool:
    """Whether most batches of an epoch differ from the batches that the snapshot's sweep has read.

    Args:
        trainer: The trainer; every rank has to call this.
        snapshot: The snapshot that the epoch has trained with; None if there was none.
        unused: Number of rows that this rank has not used.

    Returns:
        True or False, the same on every rank; False if the snapshot has no plan.
    """
    if snapshot is None or snapshot.plan is None:
        return False
    lost = total(trainer, torch.tensor(float(unused), dtype=torch.float64))
    return bool(lost > snapshot.plan.length * trainer.world_size / 2)
