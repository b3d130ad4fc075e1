"""The correction of a step's gradient, with the rows of the batches that it accumulates."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import Trainer

from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.small import Small
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.base import Snapshot


def withheld(trainer: Trainer, snapshot: Snapshot, row: Any, share: float) -> AbstractContextManager[None]:
    """Keep this rank's part of a row out of the correction: the rank's batch is not the batch that the row belongs to.

    Args:
        trainer: The trainer, about to differentiate the batch.
        snapshot: The snapshot.
        row: The row.
        share: Share of the epoch's batches before the present step.

    Returns:
        The context for the backward pass.
    """
    scale, progress = compat.grad_scale(trainer), snapshot.progress(share)
    return snapshot.withheld(row, trainer.accumulate_grad_batches, scale, progress)


def correct(trainer: Trainer, snapshot: Snapshot, keys: Sequence[Any], share: float, learner: Learner | None) -> Small | None:
    """Correct the gradient in ``.grad``, once all batches of the step are in it.

    Args:
        trainer: The trainer, whose optimizer steps next.
        snapshot: The snapshot.
        keys: The keys by which the snapshot knows the rows of the step's batches.
        share: Share of the epoch's batches before the step.
        learner: The learner, which has just seen the gradient; None if directions are not learned.

    Returns:
        The gradient's squared norm and how much of it the correction removed, shape ``(2,)``; None if there was no gradient to
        correct, or no row to correct the gradient with.
    """
    rows = snapshot.rows(trainer, keys)
    scale, progress = compat.grad_scale(trainer), snapshot.progress(share)
    return snapshot.correct(rows, trainer.accumulate_grad_batches, scale, progress, snapshot.known_slopes(learner))
