"""Private parts of Lightning's strategies, of DDP and of FSDP2."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if torch.distributed.is_available():
    from torch.distributed.fsdp import FSDPModule


def without_buffer_sync(trainer: Trainer) -> AbstractContextManager[None]:
    """Make a context in which DDP does not broadcast buffers before forward passes; afterwards DDP broadcasts as before."""
    model = trainer.strategy.model
    return _without_sync(model) if isinstance(model, DistributedDataParallel) else nullcontext()


@contextmanager
def _without_sync(model: DistributedDataParallel) -> Iterator[None]:
    before = model.require_forward_param_sync
    model.require_forward_param_sync = False
    try:
        yield
    finally:
        model.require_forward_param_sync = before


def shares_weights(strategy: Strategy) -> bool:
    """Whether the weights of all ranks lie in the same memory.

    What is sent to processes of a fork server shares its memory on a CPU. Lightning undoes that for ``"spawn"`` alone (2.6).

    Args:
        strategy: The Trainer's strategy.

    Returns:
        True for DDP on a CPU whose processes come from a fork server.
    """
    forks = isinstance(strategy, DDPStrategy) and strategy._start_method == "forkserver"
    return forks and strategy.root_device.type == "cpu"


def resharding(module: nn.Module) -> Callable[[], None]:
    """A function that frees the whole parameters that FSDP2 keeps for a root module after a forward pass.

    While FSDP2 keeps whole parameters, changes of the shards have no effect, and ``module.parameters()`` are not the tensors
    that the optimizer steps. FSDP2 also records the order of forward passes until a backward pass, to prefetch by: after the
    forward passes of a sweep, the next step would gather once more. Nothing public undoes this (torch 2.13).

    Args:
        module: A module; modules that FSDP2 did not shard are left alone.

    Returns:
        A function to call after each forward pass.
    """
    # FSDP2 shards over a process group, so without a process group there is no need to walk through the module.
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return _nothing
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


def _nothing() -> None:
    """Free nothing: no parameter is sharded."""


def _parameter_groups(module: Any) -> list[Any]:
    """FSDP2's groups of a module's own parameters; older versions of torch have at most one, under another name."""
    state = module._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is not None:
        return list(groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]


def autocast_dtype(trainer: Trainer) -> torch.dtype | None:
    """The type of forward passes under mixed precision; None if it is the parameters' type."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(str(trainer.precision))


def averages_gradients(trainer: Trainer) -> bool:
    """Whether the backward pass averages gradients over several ranks, each with the whole gradient."""
    return trainer.world_size > 1 and isinstance(trainer.strategy.model, DistributedDataParallel)


def flushed_static_graph(trainer: Trainer) -> None:
    """Tell DDP's strategy that the first backward pass over a static graph is done, although outside of a training step.

    After the first backward pass under manual optimization, Lightning starts the delayed all-reduce itself. If the loss came
    out of DDP's forward pass, DDP has started it already, and a second start is an error in torch.
    """
    if hasattr(trainer.strategy, "_pl_static_graph_delay_done"):
        trainer.strategy._pl_static_graph_delay_done = True


def grad_scale(trainer: Trainer) -> Callable[[Tensor], Tensor] | None:
    """The function that scales gradients until the optimizer steps; None if the precision plugin has no GradScaler."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler.scale
