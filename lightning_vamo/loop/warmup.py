"""Gradients that take no step, for directions to be learned from before the first snapshot."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.correction import check_dense
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards import no_trace
from lightning_vamo.loop.second import Swept


def observe(trainer: Trainer, learner: Learner, parameters: Sequence[Tensor]) -> None:
    """Show a learner the gradients in ``.grad``, uncorrected and averaged over ranks, as they are without a GradScaler.

    It passes over gradients that are not finite, with which the optimizer skips the step.

    Args:
        trainer: The trainer.
        learner: What learns from them.
        parameters: The parameters that have them.

    Raises:
        UnsupportedError: If a gradient is sparse.
    """
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    check_dense(gradients)
    scale = compat.grad_scale(trainer)
    if scale is not None:
        factor = 1 / scale(torch.ones((), device=parameters[0].device))
        gradients = [None if gradient is None else gradient * factor for gradient in gradients]
    learner.observe(gradients)


def warm_up(
    trainer: Trainer,
    module: LightningModule,
    plan: Swept,
    learner: Learner,
    parameters: Sequence[Tensor],
    most: int,
    turn: Callable[[], object],
) -> int:
    """Let a learner see the gradients of the plan's first batches, leaving no trace.

    Args:
        trainer: The trainer, between two training steps, with no gradients that accumulate.
        module: Its module, whose ``training_step`` is called plainly.
        plan: The epoch's batches.
        learner: What learns.
        parameters: The parameters that it learns directions for.
        most: How many batches at most.
        turn: Lets the learner turn to what it has learned. Called halfway: on the MNIST perceptron with four probes, 64
            batches in two passes of power iteration gave directions that hold 0.28 of the noise, and 0.20 in one.

    Returns:
        How many batches were evaluated, forward and backward.
    """
    reshard = compat.resharding(module)
    reshard()  # as before a sweep: what is kept and put back are the shards
    seen, half = 0, min(most, plan.length) // 2
    with no_trace(trainer, module, parameters) as state, plan.loaded() as batches:
        for position, loaded in enumerate(itertools.islice(batches, most)):
            batch = compat.to_device(trainer, compat.before_transfer(trainer, loaded))
            if batch is not None and _backward(trainer, batch, position):
                observe(trainer, learner, parameters)
                seen += 1
                if seen == half:
                    turn()
            for parameter in parameters:
                parameter.grad = None
            reshard()
            state.restore_tensors()
            state.restore_attributes()
    return seen


def _backward(trainer: Trainer, batch: Any, position: int) -> bool:
    """Differentiate the loss of a batch; False where there is none, or none that depends on a parameter."""
    with torch.enable_grad():
        loss, _ = compat.step_output(compat.run_training_step(trainer, batch, position), 1)
        if loss is None or not loss.requires_grad:
            return False
        trainer.strategy.backward(loss, None)
    return True
