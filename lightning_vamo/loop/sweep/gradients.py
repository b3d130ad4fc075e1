"""Compute gradients of batches without a step and without a trace."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor

from lightning_vamo.core.control.correction import any_present
from lightning_vamo.core.sharding import is_sharded
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_loss
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.no_trace import no_trace
from lightning_vamo.loop.plan.tensors import size_in_bytes

SMALL_MODEL = 2**24
"""Bytes of trained parameters up to which a copy of the parameters is kept, in case ``training_step`` writes to them."""


def gradients_of(trainer: Trainer, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients in ``.grad``: uncorrected, averaged over ranks, and unscaled.

    Args:
        trainer: The trainer.
        parameters: The parameters whose gradients to return.

    Returns:
        The gradients.

    Raises:
        UnsupportedError: If a gradient is sparse.
    """
    gradients: list[Tensor | None] = [parameter.grad for parameter in parameters]
    any_present(gradients)  # refuses sparse ones
    scale = compat.grad_scale(trainer)
    if scale is not None:
        factor = 1 / scale(torch.ones((), device=parameters[0].device))
        gradients = [None if gradient is None else gradient * factor for gradient in gradients]
    return gradients


def differentiate(
    trainer: Trainer,
    module: LightningModule,
    batches: Iterable[tuple[int, Any]],
    parameters: Sequence[Tensor],
    see: Callable[[int, list[Tensor | None], float], None],
    *,
    transferred: bool = False,
    restored: bool = False,
    last: ModuleState | None = None,
) -> ModuleState:
    """Compute the gradients of batches, and leave no trace.

    Args:
        trainer: The trainer, between two training steps.
        module: Its module, whose ``training_step`` is called plainly.
        batches: Pairs of a batch's position in the plan and the batch.
        parameters: The parameters that have gradients.
        see: Called for each batch that gives a loss, with the batch's position, the gradients, and the time at which the batch
            was asked for. The gradients' tensors are not kept after the call.
        transferred: Whether the batches are on the module's device already, and the hooks around the transfer have run.
        restored: Whether the caller restores the numbers of the parameters, in case ``training_step`` writes to them.
        last: The state that the call before returned for the same parameters, if there was one. It spares time.

    Returns:
        The module's state, which has been put back.

    Raises:
        UnsupportedError: If a loss cannot be trained on, or if ``training_step`` writes to parameters that are too large to be
            copied.
    """
    reshard = compat.resharding(module)
    reshard()  # as before a sweep: the shards are copied and put back, not whole parameters
    is_small = not restored and size_in_bytes(iter(parameters)) <= SMALL_MODEL
    is_copied = is_small and not any(map(is_sharded, parameters))
    versions = [parameter._version for parameter in parameters]
    single = isinstance(batches, list) and len(batches) == 1
    with _gradients_set_aside(parameters), no_trace(trainer, module, () if is_copied else parameters, last) as state:
        start = time.perf_counter()
        for position, loaded in batches:
            batch = loaded if transferred else compat.to_device(trainer, compat.before_transfer(trainer, loaded))
            if batch is not None and _backward(trainer, module, batch, position):
                see(position, gradients_of(trainer, parameters), start)
            for parameter in parameters:
                parameter.grad = None
            reshard()
            if not single:  # else it is put back when the context ends
                state.put_back()
            start = time.perf_counter()
    if not (is_copied or restored) and [parameter._version for parameter in parameters] != versions:
        raise UnsupportedError(
            "`training_step` writes to the parameters that it trains. The gradients before the first step must leave the"
            " parameters unchanged, but these parameters are too large for a copy to be kept: write to the parameters in"
            " `on_train_batch_end`, or pass `directions` that are not learned, such as OrthonormalDirections()."
        )
    return state


@contextmanager
def _gradients_set_aside(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Begin without gradients; at the end, restore the last step's gradients, since a hook may read these gradients."""
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, kept, strict=True):
            parameter.grad = gradient


def _backward(trainer: Trainer, module: LightningModule, batch: Any, position: int) -> bool:
    """Differentiate the loss of a batch; False for a batch without a loss."""
    with torch.enable_grad():
        loss = compat.step_loss(compat.own_steps(trainer, module)(batch, position))
        check_loss(trainer, module, loss)
        if loss is None:
            return False
        # Callbacks see the backward passes of training only: nothing puts back what their hooks change. Progress bars stay:
        # their hooks do nothing, and the thread that draws Rich's bar looks for the bar among the callbacks.
        bars = [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]  # type: ignore[attr-defined]
        with compat.replaced(trainer, "callbacks", bars):
            compat.backward(trainer, module, loss, as_it_is=True)
        compat.flushed_static_graph(trainer)
    return True
