"""Lightning's hooks around a step, by a shorter way where the result is the same.

Lightning records each call of a hook for a profiler, and sets an attribute of the module before and after the call. For the
hooks of a step, which most often do nothing, that takes longer than the passes of a small model. So hooks that nobody overrides
are passed over here, unless a profiler records the calls. Nothing public tells which hooks are overridden, or calls a hook.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import call
from torch import Tensor
from torch.optim import Optimizer

from lightning_vamo.loop.compat.attributes import replaced


def _as_defined(method: Any) -> Any:
    """A method as its own package defines it; an object that is no method, if other code has put something in its place."""
    step = method
    while step is not None:  # decorators included
        names = getattr(step, "__globals__", None)
        if names is not None and not names["__name__"].startswith(("lightning.", "torch.", "contextlib")):
            return object()
        step = getattr(step, "__wrapped__", None)
    return method


# The methods of the classes whose hooks do nothing, or what is done here: if one is replaced on the class, it is called.
_BASES: tuple[type, ...] = (
    *(Callback, LightningModule, LightningDataModule),
    *(Strategy, Precision, Optimizer, LightningOptimizer),
)
_OWN: dict[type, dict[str, Any]] = {base: {name: _as_defined(getattr(base, name)) for name in dir(base)} for base in _BASES}


def own_method(base: type, name: str) -> Any:
    """A base class's method as it was when this module was imported."""
    return _OWN[base][name]


def changes(owner: object, hook: str, base: type) -> bool:
    """Whether an object's hook differs from that of a base class; Lightning's own look takes ten times as long."""
    return hook in vars(owner) or getattr(type(owner), hook, None) is not _OWN[base][hook]


def reads_gradients(trainer: Trainer, module: LightningModule) -> bool:
    """Whether the user's code may read or change the gradients, or decide about the step, before the optimizer steps."""
    own = ("configure_gradient_clipping", "on_before_optimizer_step", "optimizer_step")
    return any(changes(module, hook, LightningModule) for hook in own) or any(
        changes(callback, "on_before_optimizer_step", Callback)
        for callback in trainer.callbacks  # type: ignore[attr-defined]
    )


def is_profiled(trainer: Trainer) -> bool:
    """Whether a profiler records the calls of hooks."""
    return type(trainer.profiler) is not PassThroughProfiler  # type: ignore[attr-defined]


def call_hook(trainer: Trainer, module: LightningModule, hook: str, *arguments: Any) -> None:
    """Call a hook of the callbacks and then of the module, as Lightning does.

    Args:
        trainer: The trainer.
        module: Its module.
        hook: Name of the hook, which does nothing unless it is overridden.
        arguments: The arguments of the hook after the trainer and the module.
    """
    profiled = is_profiled(trainer)
    if profiled or any(changes(callback, hook, Callback) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        call._call_callback_hooks(trainer, hook, *arguments)
    if profiled or changes(module, hook, LightningModule):
        call._call_lightning_module_hook(trainer, hook, *arguments)


def is_plain(owner: object, base: type, names: tuple[str, ...]) -> bool:
    """Whether an object has the methods of a base class, neither overridden in its class nor replaced on the object."""
    cls, own = type(owner), _OWN[base]
    for name in names:  # a loop, since a generator takes twice as long
        if getattr(cls, name) is not own[name]:
            return False
    return vars(owner).keys().isdisjoint(names)


def zero_grad(trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
    """Zero the gradients through the same hooks and counters as the automatic loop."""
    loop, optimizer = trainer.fit_loop.epoch_loop.automatic_optimization, trainer.optimizers[0]
    counted = loop.optim_progress.optimizer.zero_grad
    counted.increment_ready()
    call_hook(trainer, module, "on_before_zero_grad", optimizer)
    counted.increment_started()
    if is_profiled(trainer) or changes(module, "optimizer_zero_grad", LightningModule):
        loop._optimizer_zero_grad(batch_idx, optimizer)
        return
    drop(optimizer)
    counted.increment_completed()


def drop(optimizer: Optimizer) -> None:
    """Set the gradients of an optimizer's parameters to None, as its ``zero_grad`` does."""
    if changes(optimizer, "zero_grad", Optimizer):
        optimizer.zero_grad()
        return
    for group in optimizer.param_groups:  # without the record for a profiler, which takes longer
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = None


def drop_gradients(trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
    """Free the last step's gradients before a sweep, if the coming step would free them anyway, to save memory.

    They stay if a module, a callback or an optimizer zeroes gradients in a way of its own, which may keep or read them.
    """
    if batch_idx % trainer.accumulate_grad_batches or changes(module, "optimizer_zero_grad", LightningModule):
        return
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    hook = "on_before_zero_grad"
    if changes(module, hook, LightningModule) or any(changes(callback, hook, Callback) for callback in callbacks):
        return
    if any(changes(optimizer, "zero_grad", Optimizer) for optimizer in trainer.optimizers):
        return
    for optimizer in trainer.optimizers:
        drop(optimizer)


_BACKWARD = ("backward", "pre_backward", "post_backward")


def backward(trainer: Trainer, module: LightningModule, loss: Tensor, *, as_it_is: bool = False) -> None:
    """Differentiate a loss as ``manual_backward`` does, through the hooks of the strategy and of the precision plugin.

    Args:
        trainer: The trainer.
        module: Its module.
        loss: The loss.
        as_it_is: Whether the strategy made the forward pass as one of automatic optimization; within a step of the manual loop
            DDP has to be told otherwise.
    """
    strategy, precision = trainer.strategy, trainer.precision_plugin
    if is_profiled(trainer) or not (is_plain(strategy, Strategy, _BACKWARD) and is_plain(precision, Precision, _BACKWARD)):
        with ExitStack() as stack:
            for name in () if as_it_is else ("pre_backward", "post_backward"):
                if not is_plain(strategy, Strategy, (name,)):
                    stack.enter_context(replaced(strategy, name, partial(_as_manual, getattr(strategy, name), module)))
            call._call_strategy_hook(trainer, "backward", loss, trainer.optimizers[0] if trainer.optimizers else None)
        return
    call_hook(trainer, module, "on_before_backward", loss)
    with replaced(module, "_current_fx_name", "backward"):
        module.backward(loss)
    call_hook(trainer, module, "on_after_backward")


def _as_manual(hook: Callable[[Tensor], None], module: LightningModule, loss: Tensor) -> None:
    """Call a strategy's hook as in manual optimization; the user's hooks see the flag as it is in plain training."""
    with replaced(module, "_automatic_optimization", False):
        hook(loss)


def optimizer_step(trainer: Trainer, module: LightningModule, batch_idx: int, closure: Callable[[], Any]) -> None:
    """Step the optimizer as the automatic loop does, with its hooks, and count the step for ``trainer.global_step``.

    Args:
        trainer: The trainer.
        module: Its module.
        batch_idx: Lightning's index of the batch.
        closure: Computes the gradient.
    """
    counted = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    counted.increment_ready()
    optimizer: Any = module.optimizers()
    if _is_passed_on(trainer, module, optimizer):
        optimizer._on_before_step()
        with replaced(module, "_current_fx_name", "optimizer_step"):
            optimizer._optimizer.step(closure=partial(_evaluated, trainer, module, optimizer._optimizer, closure))
        optimizer._on_after_step()
    else:
        call._call_lightning_module_hook(trainer, "optimizer_step", trainer.current_epoch, batch_idx, optimizer, closure)
    counted.increment_completed()


def _is_passed_on(trainer: Trainer, module: LightningModule, optimizer: Any) -> bool:
    """Whether a step is only passed on from the module to torch's optimizer, with what is called after the closure."""
    return (
        is_plain(module, LightningModule, ("optimizer_step",))
        and is_plain(optimizer, LightningOptimizer, ("step",))
        and is_plain(trainer.strategy, Strategy, ("optimizer_step",))
        and is_plain(trainer.precision_plugin, Precision, ("optimizer_step", "_wrap_closure", "_after_closure"))
        and not is_profiled(trainer)
    )


def _evaluated(trainer: Trainer, module: LightningModule, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
    """Call a closure, and then what Lightning calls after it."""
    result, precision = closure(), trainer.precision_plugin
    if not is_plain(precision, Precision, ("_after_closure",)):  # a hook of the batch has replaced it
        precision._after_closure(module, optimizer)
        return result
    call_hook(trainer, module, "on_before_optimizer_step", optimizer)
    limit = trainer.gradient_clip_val  # looked at only now, since a hook may have set clipping for this very step
    if limit or not (is_plain(module, LightningModule, _CLIPPING) and is_plain(precision, Precision, _CLIPPED)):
        precision._clip_gradients(module, optimizer, limit, gradient_clip_algorithm=trainer.gradient_clip_algorithm)
    return result


_CLIPPING = ("configure_gradient_clipping", "clip_gradients")
_CLIPPED = ("_clip_gradients", "clip_gradients")


def step_context(trainer: Trainer) -> AbstractContextManager[None]:
    """The precision plugin's context of a training step; to enter one that does nothing takes a while too."""
    precision = trainer.precision_plugin
    if is_plain(precision, Precision, ("train_step_context", "forward_context")):
        return nullcontext()
    context: AbstractContextManager[None] = precision.train_step_context()
    return context
