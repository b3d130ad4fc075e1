"""The correction of a step's gradient, with the rows of the batches that it accumulates."""

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.loop import compat
from lightning_vamo.loop.run.standing import Standing


def withheld(trainer: Trainer, standing: Standing) -> AbstractContextManager[None]:
    """Where several ranks have to correct alike, keep this rank's part of a row out, as its batch is not the one of the row.

    Args:
        trainer: The trainer, about to differentiate the batch.
        standing: Where the run stands.

    Returns:
        What the backward pass is to run in.
    """
    if standing.taken is None or not compat.averages_gradients(trainer):
        return nullcontext()
    standing.withheld = True
    row, scale = standing.row(trainer.fit_loop.batch_idx), compat.grad_scale(trainer)
    return standing.taken.correction.withheld(row, trainer.accumulate_grad_batches, scale, standing.progress(trainer))


def correct(trainer: Trainer, standing: Standing) -> Tensor | None:
    """Correct the gradient, once all batches of the step are in it.

    Args:
        trainer: The trainer, whose optimizer steps next.
        standing: Where the run stands, with the rows of those batches.

    Returns:
        What :meth:`Correction.apply` returns: None if there was nothing to correct, or to correct it with.
    """
    taken = standing.taken
    if taken is None:
        return None
    correction, recomputation = taken.correction, taken.recomputation
    rows = standing.rows if recomputation is None else recomputation.averaged(trainer, standing.rows)
    scale, progress = compat.grad_scale(trainer), standing.progress(trainer)
    # What learns the directions has just seen the gradient along them.
    learner = standing.learner
    slopes = learner.slopes if learner is not None and learner.current is correction.directions else None
    moments = correction.apply(rows, trainer.accumulate_grad_batches, scale, progress, slopes)
    if moments is not None:
        standing.steps += 1
        standing.factors = standing.factors + correction.factors
        # What was added to this rank's gradient only to be taken out again is nothing that was removed.
        moments = moments * (not standing.withheld)
        standing.moments = moments if standing.moments is None else standing.moments + moments
    standing.rows, standing.withheld = [], False
    return moments
