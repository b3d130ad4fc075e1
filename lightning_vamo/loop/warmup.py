"""Gradients that take no step, for directions to be learned from before the first snapshot."""

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from lightning_vamo.core.correction import check_dense
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop import compat
from lightning_vamo.loop.guards import no_trace
from lightning_vamo.loop.progress import progress_bar
from lightning_vamo.loop.second import Swept
from lightning_vamo.loop.support import check_loss


def observe(trainer: Trainer, learner: Learner, parameters: Sequence[Tensor]) -> None:
    """Show a learner the gradients in ``.grad``: see :func:`gradients_of`.

    It passes over gradients that are not finite, with which the optimizer skips the step.

    Args:
        trainer: The trainer.
        learner: What learns from them.
        parameters: The parameters that have them.
    """
    learner.observe(gradients_of(trainer, parameters))


def gradients_of(trainer: Trainer, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients in ``.grad``, uncorrected and averaged over ranks, as they are without a GradScaler.

    Args:
        trainer: The trainer.
        parameters: The parameters that have them.

    Returns:
        The gradients.

    Raises:
        UnsupportedError: If one is sparse.
    """
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    check_dense(gradients)
    scale = compat.grad_scale(trainer)
    if scale is not None:
        factor = 1 / scale(torch.ones((), device=parameters[0].device))
        gradients = [None if gradient is None else gradient * factor for gradient in gradients]
    return gradients


def warm_up(
    trainer: Trainer,
    module: LightningModule,
    plan: Swept,
    learner: Learner,
    parameters: Sequence[Tensor],
    count: int,
    turn: Callable[[], object],
) -> int:
    """Let a learner see gradients of the plan's first batches, leaving no trace.

    Args:
        trainer: The trainer, between two training steps.
        module: Its module, whose ``training_step`` is called plainly.
        plan: The epoch's batches.
        learner: What learns.
        parameters: The parameters that it learns directions for.
        count: How many: where the plan has fewer, it is gone through again.
        turn: Lets the learner turn to what it has learned. Called halfway: on the MNIST perceptron with four probes, 64
            batches in two passes of power iteration gave directions that hold 0.28 of the noise, and 0.20 in one.

    Returns:
        How many were evaluated, forward and backward: those with a loss.

    Raises:
        UnsupportedError: If a loss is one that cannot be trained on.
    """
    seen, half = 0, count // 2

    def see(position: int, gradients: list[Tensor | None], start: float) -> None:
        nonlocal seen
        learner.observe(gradients)
        seen += 1
        if seen == half:
            turn()

    with closing(_repeated(plan, count)) as batches, progress_bar(trainer, "VAMO warm-up", count) as show:
        differentiate(trainer, module, _shown(batches, show), parameters, see)
        show(count)
    return seen


def differentiate(
    trainer: Trainer,
    module: LightningModule,
    batches: Iterable[tuple[int, Any]],
    parameters: Sequence[Tensor],
    see: Callable[[int, list[Tensor | None], float], None],
) -> None:
    """Compute the gradients of batches, leaving no trace.

    Args:
        trainer: The trainer, between two training steps.
        module: Its module, whose ``training_step`` is called plainly.
        batches: The batches, each after its position in the plan.
        parameters: The parameters that have gradients.
        see: Called for each that gives a loss, with its position, the gradients, which are not kept, and the time at which the
            batch was asked for.

    Raises:
        UnsupportedError: If a loss is one that cannot be trained on.
    """
    reshard = compat.resharding(module)
    reshard()  # as before a sweep: what is kept and put back are the shards
    with _gradients_set_aside(parameters), no_trace(trainer, module, parameters) as state:
        start = time.perf_counter()
        for position, loaded in batches:
            batch = compat.to_device(trainer, compat.before_transfer(trainer, loaded))
            if batch is not None and _backward(trainer, module, batch, position):
                see(position, gradients_of(trainer, parameters), start)
            for parameter in parameters:
                parameter.grad = None
            reshard()
            state.restore_tensors()
            state.restore_attributes()
            start = time.perf_counter()


def _shown(batches: Iterable[tuple[int, Any]], show: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    for done, batch in enumerate(batches):
        show(done)
        yield batch


def _repeated(plan: Swept, count: int) -> Generator[tuple[int, Any]]:
    """Batches with their positions in the plan."""
    for left in range(count, 0, -plan.length):
        with plan.loaded() as batches:
            yield from enumerate(itertools.islice(batches, left))


@contextmanager
def _gradients_set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Begin without gradients; those that the last step left, and a hook may mean to look at, come back at the end."""
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _backward(trainer: Trainer, module: LightningModule, batch: Any, position: int) -> bool:
    """Differentiate the loss of a batch; False where there is none."""
    with torch.enable_grad():
        loss, _ = compat.step_output(compat.run_training_step(trainer, batch, position), 1)
        check_loss(trainer, module, loss)
        if loss is None:
            return False
        # Callbacks see the backward passes of training only: nothing puts back what their hooks change. A progress bar's do
        # nothing, and the thread that draws Rich's looks for it among the callbacks.
        bars = [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]  # type: ignore[attr-defined]
        with compat.replaced(trainer, "callbacks", bars):
            trainer.strategy.backward(loss, None)
        compat.flushed_static_graph(trainer)
    return True
