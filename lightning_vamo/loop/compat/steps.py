"""Lightning's private parts around a training step."""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import _MockOptimizer
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_vamo.loop.compat.attributes import behind, put_before, replaced
from lightning_vamo.loop.compat.hooks import is_plain, is_profiled, step_context
from lightning_vamo.loop.compat.signals import SignalGate


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer of the module, or None; the public property raises if there is no trainer."""
    return module._trainer


def is_compiled(module: LightningModule) -> bool:
    """Whether the module as a whole was compiled by ``torch.compile``, including its ``training_step``."""
    return module._compiler_ctx is not None


def manual(module: LightningModule, is_manual: bool = True) -> AbstractContextManager[None]:
    """Make a context in which the module counts as optimized manually, or automatically."""
    # This attribute is what the property sets. The property would run all of `nn.Module.__setattr__`, four times a step.
    return replaced(module, "_automatic_optimization", not is_manual)


@contextmanager
def manual_steps(
    trainer: Trainer,
    callback: Callback,
    module: LightningModule,
    started: Callable[[Any], AbstractContextManager[None]],
    direct: Callable[[Any], Any],
    wanted: Callable[[], bool],
    plain: Callable[[Any], None],
    gate: SignalGate,
) -> Iterator[None]:
    """Make a context that runs each training step in Lightning's manual loop, and everything else as automatic optimization.

    If the flag ``automatic_optimization`` is False, Lightning refuses or drops gradient clipping, accumulation, scheduler
    steps, logging and checkpoint timing. So the flag is False only while the manual loop runs: the automatic loop's ``run``,
    which has no public hook, is replaced on the instance and calls the manual loop. ``started`` gets the batch, after all hooks
    of its start have run. Where the manual loop would only call the module's ``training_step``, ``direct`` is called in its
    place, with the arguments of ``training_step``; it returns None if it cannot step. Steps that are not ``wanted`` are
    automatic, and ``plain`` gets their outputs. A step closes the ``gate`` to signals until all hooks of the batch's end have
    run. A tuner that trains within the training removes the callbacks for that time; its steps are automatic.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    automatic_loop, manual_loop = epoch_loop.automatic_optimization, epoch_loop.manual_optimization

    automatic = automatic_loop.run

    def run(optimizer: Optimizer, batch_idx: int, kwargs: Any) -> Any:
        if callback not in trainer.callbacks:  # type: ignore[attr-defined]
            return automatic(optimizer, batch_idx, kwargs)
        gate.close()
        try:
            return stepped(optimizer, batch_idx, kwargs)
        except BaseException:
            gate.open()  # here, and not where the training ends: what a handler raises is then an exception like the others
            raise

    def stepped(optimizer: Optimizer, batch_idx: int, kwargs: Any) -> Any:
        if not wanted():
            outputs = automatic(optimizer, batch_idx, kwargs)
            plain(outputs)
            return outputs
        if _is_direct(trainer, module):
            outputs = direct((*kwargs.values(),))
            if outputs is not None:
                return outputs
        accumulating = accumulates(trainer)
        # While the flag is False, `global_step` is the manual loop's count, which plain and direct steps do not advance.
        steps = manual_loop.optim_step_progress.total
        steps.ready = steps.completed = automatic_loop.optim_progress.optimizer_steps
        with started(next(iter(kwargs.values()))), manual(module):
            outputs = manual_loop.run(kwargs)
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # In manual optimization DDP sees no forward pass after which it has to synchronize, so it would stop broadcasting
            # BatchNorm's buffers before the next forward pass.
            trainer.strategy.model.require_forward_param_sync = not accumulating
        return outputs

    connector = trainer._logger_connector
    ended = connector.on_batch_end  # comes after the hooks of all callbacks and of the module, with nothing counted since

    def on_batch_end() -> None:
        gate.open()
        ended()

    with (
        replaced(automatic_loop, "run", run),
        replaced(connector, "on_batch_end", on_batch_end),
        gate.installed(trainer),
    ):
        yield


def _is_direct(trainer: Trainer, module: LightningModule) -> bool:
    """Whether between the manual loop and ``training_step`` there is only what Lightning does on a single device."""
    strategy = trainer.strategy
    return strategy.model is module and is_plain(strategy, Strategy, _STEP) and not is_profiled(trainer)


_STEP = ("training_step", "post_training_step", "pre_backward", "backward", "optimizer_step")


def within_step(module: LightningModule) -> AbstractContextManager[None]:
    """Make a context in which ``self.log`` counts as called from ``training_step``."""
    return replaced(module, "_current_fx_name", "training_step")


def as_step(module: LightningModule, step: Callable[[], Any]) -> Any:
    """Call a user's ``training_step`` from within another hook, such as ``optimizer_step``."""
    with within_step(module):
        return step()


def step_output(output: Any, accumulate_grad_batches: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The loss and the outputs for callbacks, read from a step's return value as the automatic loop reads it."""
    if isinstance(output, Tensor) and accumulate_grad_batches == 1:  # most often; to divide by 1 and to copy takes a while
        return output, {"loss": output.detach().clone()}
    result = ClosureResult.from_training_step_output(output, accumulate_grad_batches)
    return result.closure_loss, {} if result.closure_loss is None else result.asdict()


def step_loss(output: Any) -> Tensor | None:
    """The loss in a step's return value, as it is; None where there is none."""
    if isinstance(output, Tensor):  # the usual case, for which Lightning's reading is a copy too many per evaluation
        return output
    loss, _ = step_output(output, 1)
    return loss


def accumulates(trainer: Trainer) -> bool:
    """Whether the optimizer steps after a later batch: the current batch only adds to the gradient."""
    return trainer.fit_loop._should_accumulate()


def skips_backward(trainer: Trainer) -> bool:
    """Whether this epoch runs forward passes only, as StochasticWeightAveraging's last epoch does to update BatchNorm."""
    return trainer.fit_loop._skip_backward


def without_gradient_sync(trainer: Trainer) -> AbstractContextManager[None]:
    """Keep a distributed strategy from reducing gradients that are still accumulating."""
    context: AbstractContextManager[None] = _block_parallel_sync_behavior(trainer.strategy, block=True)
    return context


def run_training_step(trainer: Trainer, batch: Any, batch_idx: int) -> Any:
    """Call the module's ``training_step`` through the strategy, with the arguments of its signature."""
    module = trainer.lightning_module
    arguments = step_arguments(module.training_step, batch, batch_idx)
    if is_profiled(trainer):
        return call._call_strategy_hook(trainer, "training_step", *arguments)
    # What else the hook does takes as long as the forward pass of a small model: `nn.Module.__setattr__`, for the most part.
    own = vars(module)
    before, own["_current_fx_name"] = own.get("_current_fx_name"), "training_step"
    try:
        return trainer.strategy.training_step(*arguments)
    finally:
        own["_current_fx_name"] = before


def is_driven(step: Any) -> bool:
    """Whether a ``training_step`` is one that :func:`driven` has made."""
    return behind(step) is not None


def driven(step: Callable[..., Any], user_step: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function the ``training_step`` of a class in place of the user's own function, which it calls.

    Args:
        step: The function.
        user_step: The user's own function.

    Returns:
        ``step``, with the names and the signature of ``user_step``.
    """
    functools.update_wrapper(step, user_step)
    # Lightning unwraps a step once to find out which arguments to pass: so it comes to the function that it finds without the
    # mixin.
    step.__wrapped__ = getattr(user_step, "__wrapped__", user_step)  # type: ignore[attr-defined]
    put_before(step, user_step)
    return step


def own_step(module: LightningModule) -> Callable[..., Any] | None:
    """The user's step behind the mixin's; None if a decorator or the like is called in place of the mixin's step."""
    own: Callable[..., Any] | None = behind(type(module).training_step)
    return None if "training_step" in vars(module) else own


def own_steps(trainer: Trainer, module: LightningModule) -> Callable[[Any, int], Any]:
    """Prepare calls of the user's own ``training_step``, as :func:`run_training_step` makes them, where no driver is to answer.

    Args:
        trainer: The trainer.
        module: Its module.

    Returns:
        A function of a batch and its index, to call while the hooks of the trainer and the module stay as they are: what
        stands between the strategy and the step is looked at here, since that takes as long as a layer of a small model.
    """
    own = own_step(module)
    if own is None or not _is_direct(trainer, module):
        return functools.partial(run_training_step, trainer)

    def step(batch: Any, batch_idx: int) -> Any:
        with within_step(module), step_context(trainer):
            return own(module, *step_arguments(own, batch, batch_idx))

    return step


def step_arguments(step: Callable[..., Any], batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """The arguments that a ``training_step`` takes, by the rule of Lightning's training loop."""
    return (batch, batch_idx) if _takes_batch_idx(getattr(step, "__func__", step)) else (batch,)


@functools.cache
def _takes_batch_idx(step: Callable[..., Any]) -> bool:
    # Cached, since reading a signature takes as long as the forward pass of a small model.
    return bool(is_param_in_hook_signature(step, "batch_idx", min_args=2))


def backward_is_watched(trainer: Trainer) -> bool:
    """Whether a callback overrides ``on_after_backward``, which may change gradients and which a warm-up would not call.

    Returns:
        True or False. ``on_before_optimizer_step`` does not count, since it sees gradients that have been corrected.
    """
    return any(is_overridden("on_after_backward", callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def has_no_optimizer(optimizer: Optimizer) -> bool:
    """Whether the optimizer is the dummy that Lightning creates if ``configure_optimizers`` returned None."""
    return isinstance(optimizer, _MockOptimizer)
