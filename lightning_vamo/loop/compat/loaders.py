"""Lightning's private parts around the training loader and its batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_vamo.loop.compat.attributes import behind, put_before, replaced
from lightning_vamo.loop.compat.hooks import is_plain, is_profiled, own_method


def train_loader(trainer: Trainer) -> CombinedLoader | None:
    """The combined loader of the training epochs; ``trainer.train_dataloader`` drops its mode and limits."""
    return trainer.fit_loop._combined_loader


def train_loaders(trainer: Trainer) -> list[Any]:
    """The training loaders, in their order; none before they are set up."""
    combined = train_loader(trainer)
    return [] if combined is None else list(combined.flattened)


def set_up_loaders_again(trainer: Trainer) -> None:
    """Set up the training loaders that the Trainer would keep; the global random generators stay as they are."""
    with isolate_rng(include_cuda=trainer.strategy.root_device.type == "cuda"):
        trainer.fit_loop._combined_loader = None
        trainer.fit_loop.setup_data()


def loader_mode(loader: CombinedLoader) -> Any:
    """The mode of a combined loader, which the loader takes as an argument but has no public attribute for."""
    return loader._mode


def before_transfer(trainer: Trainer, batch: Any) -> Any:
    """Prepare a batch as the training epoch loop does before the transfer: convert its precision, and call the user's hook."""
    batch = trainer.precision_plugin.convert_input(batch)
    if _transfers_plainly(trainer, _BEFORE):
        return batch
    return trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)


@contextmanager
def seen_transfers(trainer: Trainer, see: Callable[[Any], None]) -> Iterator[None]:
    """Make a context in which a function sees the batches that Lightning's loops transfer to the device.

    Args:
        trainer: The trainer, whose loops hand each batch to ``Strategy.batch_to_device``, after the precision plugin and the
            module's ``on_before_batch_transfer``.
        see: Gets the batch before its transfer.

    Yields:
        Nothing.
    """
    transfer = trainer.strategy.batch_to_device

    def batch_to_device(batch: Any, *args: Any, **kwargs: Any) -> Any:
        see(batch)
        return transfer(batch, *args, **kwargs)

    put_before(batch_to_device, transfer)
    with replaced(trainer.strategy, "batch_to_device", batch_to_device):
        yield


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Transfer a batch as the training epoch loop does, through the user's transfer hooks.

    Args:
        trainer: The trainer.
        batch: The batch, after :func:`before_transfer`.

    Returns:
        The batch on the device; the function of :func:`seen_transfers` may not see the transfer.
    """
    if _has_own_transfer(trainer.strategy) and _transfers_plainly(trainer, _AFTER):
        device = trainer.strategy.root_device
        return type(batch)(batch) if _is_there(batch, device) else move_data_to_device(batch, device)
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)


def _has_own_transfer(strategy: Strategy) -> bool:
    """Whether a strategy transfers batches in Lightning's own way, which something may watch."""
    transfer: Any = strategy.batch_to_device
    while (other := behind(transfer)) is not None:
        transfer = other
    return getattr(transfer, "__func__", None) is own_method(Strategy, "batch_to_device")


_BEFORE = ("on_before_batch_transfer", "_on_before_batch_transfer", "_call_batch_hook")
_AFTER = ("transfer_batch_to_device", "on_after_batch_transfer", "_apply_batch_transfer_handler", "_call_batch_hook")


def _transfers_plainly(trainer: Trainer, names: tuple[str, ...]) -> bool:
    """Whether hooks of the transfer are Lightning's own; else Lightning calls the hooks, and tells whose hook comes first."""
    selector = trainer._data_connector._datahook_selector
    if is_profiled(trainer) or selector is None or not is_plain(trainer.lightning_module, LightningModule, names):
        return False
    hooks = tuple(name for name in names if name in _HOOKS)
    return selector.datamodule is None or is_plain(selector.datamodule, LightningDataModule, hooks)


_HOOKS = {"on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"}


def _is_there(batch: Any, device: torch.device) -> bool:
    """Whether a batch is a list or tuple of tensors on the CPU, and stays there."""
    if device.type != "cpu" or type(batch) not in (list, tuple):
        return False
    return all(type(item) is Tensor and item.device.type == "cpu" for item in batch)
