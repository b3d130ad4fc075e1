"""Detect data that gives other batches when the data is read again."""

import torch
from lightning.pytorch import Trainer

from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.sweep.agree import total


def differs_anywhere(trainer: Trainer, differs: bool) -> bool:
    """Whether the present batch of any rank is another one than the sweep saw in its place.

    Args:
        trainer: The trainer; every rank has to call this.
        differs: Whether the batch of this rank is.

    Returns:
        The same on every rank.
    """
    if trainer.world_size == 1:
        return differs
    return bool(total(trainer, torch.tensor(float(differs), dtype=torch.float64)) > 0)


def gives_other_batches(trainer: Trainer, snapshot: Snapshot | None, unused: int) -> bool:
    """Whether most batches of an epoch differ from the batches that the snapshot's sweep has read.

    Args:
        trainer: The trainer; every rank has to call this.
        snapshot: The snapshot that the epoch has trained with; None if there was none.
        unused: How many rows this rank has not used.

    Returns:
        The same on every rank; False where batches had no place.
    """
    if snapshot is None or snapshot.plan is None:
        return False
    lost = total(trainer, torch.tensor(float(unused), dtype=torch.float64))
    return bool(lost > snapshot.plan.length * trainer.world_size / 2)
