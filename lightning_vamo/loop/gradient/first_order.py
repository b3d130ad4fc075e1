"""The gradient by backpropagation."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_loss
from lightning_vamo.loop.gradient.base import Evaluated, Gradient, Step


class FirstOrder(Gradient):
    """The mini-batch gradient, by one forward and one backward pass, in the order of Lightning's automatic optimization."""

    def accumulate(self, step: Step) -> Evaluated:
        """See :meth:`Gradient.accumulate`."""
        trainer, module = step.trainer, step.module
        with compat.step_context(trainer):
            output: Any = step.user_step()
        loss, outputs = compat.step_output(output, trainer.accumulate_grad_batches)
        check_loss(trainer, module, loss)
        if loss is None:
            rank_zero_warn("`training_step` returned None, so the batch is skipped. Ignore this warning if that is intended.")
        if step.first:
            compat.zero_grad(trainer, module, trainer.fit_loop.batch_idx)
        if loss is not None:
            with step.around_backward():
                compat.backward(trainer, module, loss)
        return Evaluated(outputs, forwards=1, backwards=int(loss is not None), skipped=loss is None)
