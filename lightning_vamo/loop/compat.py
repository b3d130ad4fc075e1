"""Every access to Lightning's private parts, in one place.

Checked against Lightning 2.6.0 and 2.6.6. Each function says what it reaches for, and why nothing public does.
"""

import builtins
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import Enum
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torchmetrics import Metric

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule


def trainer_of(module: LightningModule) -> Trainer | None:
    """The trainer that the module is attached to: the public property raises where there is none."""
    return module._trainer


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute on the instance for the length of the context, and put back what was on the instance before."""
    own = vars(owner)
    missing = object()
    before = own.get(name, missing)
    own[name] = value
    try:
        yield
    finally:
        if before is missing:
            own.pop(name, None)
        else:
            own[name] = before


def is_compiled(module: LightningModule) -> bool:
    """Whether the module as a whole went through ``torch.compile``, its ``training_step`` included."""
    return module._compiler_ctx is not None


@contextmanager
def manual(module: LightningModule, is_manual: bool = True) -> Iterator[None]:
    """Let the module count as optimized manually, or automatically, for the length of the context."""
    before = module.automatic_optimization
    module.automatic_optimization = not is_manual
    try:
        yield
    finally:
        module.automatic_optimization = before


@contextmanager
def manual_steps(
    trainer: Trainer, module: LightningModule, started: Callable[[Any], AbstractContextManager[None]]
) -> Iterator[None]:
    """Run each training step in Lightning's manual-optimization loop, and everything else as under automatic optimization.

    Lightning ties gradient clipping, accumulation, scheduler stepping, logging and checkpoint timing to the flag
    ``automatic_optimization``, refusing or dropping them where it is False. So the flag is False only while the manual loop
    runs: the automatic loop's ``run``, which has no public hook, is replaced on the instance and hands over. ``started`` gets
    the batch: all hooks of its start have run by then.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    automatic_loop, manual_loop = epoch_loop.automatic_optimization, epoch_loop.manual_optimization

    def run(optimizer: Optimizer, batch_idx: int, kwargs: Any) -> Any:
        accumulating = accumulates(trainer)
        with started(next(iter(kwargs.values()))), manual(module):
            outputs = manual_loop.run(kwargs)
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            # In manual optimization DDP never sees a forward pass that it is to synchronize after, so it would stop
            # broadcasting BatchNorm's buffers before the next one.
            trainer.strategy.model.require_forward_param_sync = not accumulating
        return outputs

    with replaced(automatic_loop, "run", run):
        yield


@contextmanager
def without_buffer_sync(trainer: Trainer) -> Iterator[None]:
    """Keep DDP from broadcasting buffers before forward passes whose buffers are put back, and from forgetting to later."""
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    before = model.require_forward_param_sync
    model.require_forward_param_sync = False
    try:
        yield
    finally:
        model.require_forward_param_sync = before


def resharding(module: nn.Module) -> Callable[[], None]:
    """How to give up the whole parameters that FSDP2 keeps of a root module after a forward pass.

    While they are kept, changes of the shards have no effect, and ``module.parameters()`` are not what the optimizer steps.
    FSDP2 also notes the order of forward passes, until a backward pass, to prefetch by: after forward passes without one, as
    in a sweep, the next step would gather once more. Nothing public takes that back (torch 2.13).

    Args:
        module: A module; what FSDP2 did not shard is left alone.

    Returns:
        A function to call after each forward pass.
    """
    if not torch.distributed.is_available():
        return lambda: None
    wrapped = [part for part in module.modules() if isinstance(part, FSDPModule)]
    groups = [group for part in wrapped for group in _parameter_groups(part)]

    def reshard() -> None:
        for part in wrapped:
            part.reshard()
        for group in groups:
            if group._post_forward_indices:
                group._post_forward_indices.clear()
                group.comm_ctx.post_forward_order.clear()

    return reshard


def _parameter_groups(module: Any) -> list[Any]:
    """FSDP2's groups of a module's own parameters; older versions of torch have at most one, under another name."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is not None:
        return list(groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


@contextmanager
def counted_step(trainer: Trainer) -> Iterator[None]:
    """Count an optimizer step as the automatic loop does, so that ``trainer.global_step`` and checkpoints are the same."""
    step = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step
    step.increment_ready()
    yield
    step.increment_completed()


def zero_grad(trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
    """Zero the gradients through the same hooks and counters as the automatic loop."""
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    optimizer = trainer.optimizers[0]
    loop._on_before_zero_grad(optimizer)
    loop._optimizer_zero_grad(batch_idx, optimizer)


def step_output(output: Any, accumulate_grad_batches: int) -> tuple[Tensor | None, dict[str, Any]]:
    """The loss to differentiate, and what callbacks get as outputs, as the automatic loop reads a step's return value."""
    result = ClosureResult.from_training_step_output(output, accumulate_grad_batches)
    return result.closure_loss, {} if result.closure_loss is None else result.asdict()


def accumulates(trainer: Trainer) -> bool:
    """Whether the current batch only adds to the gradient, and a later one steps."""
    return trainer.fit_loop._should_accumulate()


def skips_backward(trainer: Trainer) -> bool:
    """Whether this epoch runs forward only, as StochasticWeightAveraging's last one does to update BatchNorm."""
    return trainer.fit_loop._skip_backward


def without_gradient_sync(trainer: Trainer) -> AbstractContextManager[None]:
    """Keep a distributed strategy from reducing gradients that are still accumulating."""
    context: AbstractContextManager[None] = _block_parallel_sync_behavior(trainer.strategy, block=True)
    return context


def train_loader(trainer: Trainer) -> CombinedLoader | None:
    """The combined loader of the training epochs; ``trainer.train_dataloader`` drops its mode and limits."""
    return trainer.fit_loop._combined_loader


def loader_mode(loader: CombinedLoader) -> Any:
    """How a combined loader combines; it takes the mode as an argument but does not give it back."""
    return loader._mode


def before_transfer(trainer: Trainer, batch: Any) -> Any:
    """Prepare a batch as the training epoch loop does before it transfers it: the precision, and the user's hook."""
    batch = trainer.precision_plugin.convert_input(batch)
    return trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Transfer a batch as the training epoch loop does, through the user's transfer hooks."""
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


def run_training_step(trainer: Trainer, batch: Any, batch_idx: int) -> Any:
    """Call the module's ``training_step`` through the strategy, with the arguments that its signature asks for."""
    arguments = step_arguments(trainer.lightning_module.training_step, batch, batch_idx)
    return call._call_strategy_hook(trainer, "training_step", *arguments)


def rng_states(device: torch.device) -> dict[str, Any]:
    """State of the global generators of torch, numpy and Python, and of CUDA where the model lives there."""
    return _collect_rng_states(include_cuda=device.type == "cuda")


def set_rng_states(states: dict[str, Any]) -> None:
    """Return the global generators to a state of :func:`rng_states`; the public ``isolate_rng`` cannot return twice."""
    _set_rng_states(states)


def step_arguments(step: Callable[..., Any], batch: Any, batch_idx: int) -> tuple[Any, ...]:
    """The arguments that a ``training_step`` takes, by the rule of Lightning's training loop."""
    return (batch, batch_idx) if _takes_batch_idx(getattr(step, "__func__", step)) else (batch,)


@functools.cache
def _takes_batch_idx(step: Callable[..., Any]) -> bool:
    # Cached: reading a signature takes as long as the forward pass of a small model.
    return bool(is_param_in_hook_signature(step, "batch_idx", min_args=2))


def drop_gradients(trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
    """Free the last step's gradients if the coming step is about to: the sweep's copy of the weights takes their place.

    A module or callback that overrides a hook around zeroing them may mean to keep them, or to look at them.
    """
    watched = is_overridden("optimizer_zero_grad", module) or is_overridden("on_before_zero_grad", module)
    watched |= any(is_overridden("on_before_zero_grad", callback) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if batch_idx % trainer.accumulate_grad_batches == 0 and not watched:
        for optimizer in trainer.optimizers:
            optimizer.zero_grad()


def autocast_dtype(trainer: Trainer) -> torch.dtype | None:
    """The type that forward passes compute in under mixed precision, or None where it is the parameters' own."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))


def averages_gradients(trainer: Trainer) -> bool:
    """Whether the backward pass averages gradients over several ranks, each of which has whole ones."""
    return trainer.world_size > 1 and isinstance(trainer.strategy.model, DistributedDataParallel)


def flushed_static_graph(trainer: Trainer) -> None:
    """Tell DDP's strategy that the first backward pass over a static graph has been made, outside of a training step.

    After the first one under manual optimization, Lightning starts the delayed all-reduce itself. Of a loss that came out of
    DDP's forward pass DDP has done so, and a second time is an error in torch.
    """
    if hasattr(trainer.strategy, "_pl_static_graph_delay_done"):
        trainer.strategy._pl_static_graph_delay_done = True


def grad_scale(trainer: Trainer) -> Callable[[Tensor], Tensor] | None:
    """What scales the gradients until the optimizer steps: the precision plugin's GradScaler, where it has one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.scale


@contextmanager
def continued(
    trainer: Trainer, restore: Callable[[], None], *, within: bool, end_batch: bool, resumable: bool = True
) -> Iterator[None]:
    """Let the epoch loop, which resumes from a checkpoint, go on exactly where the interrupted run would have.

    Lightning makes the loader's iterator before the first epoch of a run, whatever epoch that is, and takes a checkpoint that
    was saved at a batch's end for one whose validation and whose plateau schedulers are done. No hook comes between.

    Args:
        trainer: The trainer, which has read the checkpoint and not yet begun to train.
        restore: Called once. Within an epoch, when the loaders' iterators are made and nothing has been drawn from them; else
            before the next epoch, which may reload the loaders, and makes their iterators at its usual point of the random
            stream.
        within: Whether the run goes on within an epoch.
        end_batch: Whether what follows a batch is still to be done: validation, if due, and the schedulers that wait for it.
        resumable: Whether the loaders go on with the batches that are left, so that Lightning need not warn.
    """
    fit_loop, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    on_advance_start, on_run_start, advance = fit_loop.on_advance_start, loop.on_run_start, loop.advance
    original_reset = loop.reset
    waiting = {"epoch": not within, "start": True, "end_batch": end_batch}
    stepped = loop._batches_that_stepped

    def begin() -> None:
        if waiting["epoch"]:
            waiting["epoch"] = False
            restore()
        on_advance_start()

    def start(fetcher: Any) -> None:
        first, waiting["start"] = waiting["start"], False
        if first and not within:
            iter(fetcher)
        on_run_start(fetcher)
        if first and within:
            if not loop.restarted_on_last or loop.batch_progress.current.ready == 0:
                # Saved in or before a batch, whose step Lightning would count twice, and before which it would validate.
                loop.restarting, loop._batches_that_stepped, loop.batch_progress.is_last_batch = False, stepped, False
            restore()

    def step(fetcher: Any) -> None:
        if waiting["end_batch"]:
            waiting["end_batch"] = False
            loop.val_loop.restarting = False
            return
        advance(fetcher)

    def reset() -> None:
        with warnings.catch_warnings():
            if resumable:
                warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
            original_reset()

    with (
        replaced(fit_loop, "on_advance_start", begin),
        replaced(loop, "reset", reset),
        replaced(loop, "on_run_start", start),
        replaced(loop, "advance", step),
    ):
        yield


def position(trainer: Trainer) -> int | None:
    """How many batches the epoch has trained on, by the counters that checkpoints hold; None between two epochs."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(batch.processed) if epoch.started > epoch.processed else None


def end_batch_on_resume(checkpoint: dict[str, Any]) -> bool:
    """Mark the last batch of a checkpoint that was saved at its end as complete, so that Lightning does not complete it.

    Args:
        checkpoint: The checkpoint, before the loops read it; it is changed.

    Returns:
        Whether it was saved at a batch's end, so that what follows is to be done: see :func:`continued`.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    current = progress["current"]
    if current["ready"] != current["processed"]:
        return False
    ends_batch: bool = current["completed"] < current["processed"]
    # All of them: what an epoch left out, by a batch of None or by -1 from `on_train_batch_start`, is missing for good.
    for counts in (current, progress["total"]):
        counts["started"] = counts["processed"] = counts["completed"] = counts["ready"]
    return ends_batch


def in_validation(trainer: Trainer) -> bool:
    """Whether a validation has begun that has not ended."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    ended = progress.is_last_batch and progress.current.completed == progress.current.ready
    return trainer.validating and not ended


def last_reload(trainer: Trainer) -> float:
    """The epoch in which the training loaders were made last; Lightning's checkpoints do not hold it."""
    return float(trainer.fit_loop._last_train_dl_reload_epoch)


def set_last_reload(trainer: Trainer, epoch: float) -> None:
    """Count the epochs to the next reloading of the training loaders from that epoch."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def resume_schedulers(trainer: Trainer) -> None:
    """Let plateau schedulers step at the end of a resumed epoch: Lightning leaves them out, as it has lost their metrics."""
    trainer.fit_loop._restarting = False


def ended_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved at an epoch's end, before the schedulers that wait for the epoch's metrics stepped."""
    total = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]
    return bool(total["ready"] == total["processed"] == total["completed"] + 1)


def step_plateau_schedulers(trainer: Trainer) -> None:
    """Step the plateau schedulers of the epoch before, which a checkpoint of its end was too early for."""
    progress = trainer.fit_loop.epoch_progress.current
    progress.completed -= 1  # their frequency is counted in epochs
    try:
        trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    finally:
        progress.completed += 1


_LOG_ARGUMENTS = (
    *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch"),
    *("enable_graph", "add_dataloader_idx", "dataloader_idx", "metric_attribute"),
)


def log_state(trainer: Trainer, within: bool) -> dict[str, Any]:
    """What ``self.log`` has gathered, as plain types and tensors: no checkpoint of Lightning's holds it.

    Args:
        trainer: The trainer.
        within: Whether an epoch has begun whose means are still being taken.

    Returns:
        The epoch's logs so far, and the metrics that callbacks and schedulers can monitor.
    """
    entries = {}
    for key, result in trainer.fit_loop.epoch_loop._results.items() if within else ():
        meta = result.meta
        if result.has_reset or meta.sync.group is not None:
            continue
        names = ("value", "cumulated_batch_size", "_forward_cache", "_update_count")
        entries[key] = {
            "arguments": {name: getattr(meta, name) for name in _LOG_ARGUMENTS},
            "reduce_fx": meta.reduce_fx.__name__,
            "builtin": meta.reduce_fx.__module__ == "builtins",
            "sync_dist": meta.sync.should,
            "rank_zero_only": meta.sync.rank_zero_only,
            "is_tensor": result.is_tensor,
            "values": {name: getattr(result, name) for name in names if isinstance(getattr(result, name, None), (Tensor, int))},
        }
    return {"entries": entries, "callback_metrics": dict(trainer.callback_metrics)}


def set_log_state(trainer: Trainer, module: LightningModule, state: dict[str, Any], position: int | None) -> None:
    """Take up the logs of :func:`log_state`.

    Args:
        trainer: The trainer.
        module: Its module.
        state: The logs.
        position: How many batches the epoch has trained on; None between two epochs.
    """
    results = trainer.fit_loop.epoch_loop._results
    for key, entry in state["entries"].items():
        reduce_fx = getattr(builtins if entry["builtin"] else torch, entry["reduce_fx"])
        meta = _Metadata(**entry["arguments"], reduce_fx=reduce_fx)
        meta.sync = _Sync(fn=trainer.strategy.reduce, _should=entry["sync_dist"], rank_zero_only=entry["rank_zero_only"])
        results[key] = result = _ResultMetric(meta, entry["is_tensor"])
        for name, value in entry["values"].items():
            setattr(result, name, value)
        if not entry["is_tensor"]:
            result.value = module.get_submodule(entry["arguments"]["metric_attribute"])
        result.to(module.device)
    trainer._logger_connector._callback_metrics.update(state["callback_metrics"])
    if position:
        trainer._logger_connector._first_loop_iter = position == 1


def metric_states(module: LightningModule) -> dict[str, Any]:
    """What the module's torchmetrics have gathered: by default they do not put it into checkpoints."""
    return {
        name: {"updates": metric._update_count, "state": metric.metric_state}
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric._update_count
    }


def set_metric_states(module: LightningModule, states: dict[str, Any]) -> None:
    """Take up the states of :func:`metric_states`."""
    for name, saved in states.items():
        metric: Any = module.get_submodule(name)
        for attribute, value in saved["state"].items():
            setattr(metric, attribute, value)
        metric._update_count = saved["updates"]
        metric.to(module.device)


_T = TypeVar("_T")


class FitEnded(Exception):
    """Ends a fit from within one of its hooks: see :func:`fit_until_ended`."""


def launched(trainer: Trainer, module: LightningModule, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function as ``Trainer.fit`` calls what it does: in the processes that the strategy launches.

    Unlike ``fit`` it returns what the function does, in the main process too where the others are forked or spawned.

    Args:
        trainer: The trainer.
        module: The module to fit.
        function: Called with the trainer, the module, and the arguments.
        arguments: More arguments.

    Returns:
        What the function returned, in the process of rank 0 if it was another one.
    """
    trainer.strategy._lightning_module = module
    trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
    trainer.training = True
    trainer.should_stop = False
    result: _T = call._call_and_handle_interrupt(trainer, function, trainer, module, *arguments)
    return result


def fit_until_ended(trainer: Trainer, module: LightningModule, **data: Any) -> None:
    """Fit, within :func:`launched`, until a hook raises :class:`FitEnded`; then clean up as Lightning's tuner does.

    Args:
        trainer: The trainer. Callbacks that the module would add to its own are left out, and none of its own can log.
        module: The module.
        data: Further arguments of ``Trainer.fit``.
    """
    connector = trainer._callback_connector
    with (
        replaced(connector, "_attach_model_callbacks", lambda: None),
        replaced(connector, "_attach_model_logging_functions", lambda: None),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
        try:
            trainer._fit_impl(module, **data)
        except FitEnded:
            call._call_teardown_hook(trainer)
            trainer._teardown()


def parts(trainer: Trainer) -> list[Any]:
    """The trainer, and the objects of Lightning's that it is made of: loops and their progress, connectors, strategy, plugins.

    Not among them are the user's module, data, callbacks and loggers, and the environment, which knows the launched processes.

    Args:
        trainer: The trainer.

    Returns:
        Each object once, the trainer first.
    """
    others = (LightningModule, LightningDataModule, Callback, Logger, ClusterEnvironment, Enum, type)
    found: dict[int, Any] = {}
    waiting: list[Any] = [trainer]
    while waiting:
        part = waiting.pop()
        is_part = any(base.__module__.split(".")[0] == "lightning" for base in type(part).__mro__)
        if id(part) not in found and is_part and not isinstance(part, others) and hasattr(part, "__dict__"):
            found[id(part)] = part
            waiting += vars(part).values()
    return list(found.values())


def fits_in_other_processes(trainer: Trainer) -> bool:
    """Whether a fit runs in processes forked or spawned from this one, which then must not touch the GPUs."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
