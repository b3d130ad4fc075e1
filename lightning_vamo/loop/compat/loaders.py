"""Lightning's private parts around the training loader and its batches."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities import CombinedLoader


def train_loader(trainer: Trainer) -> CombinedLoader | None:
    """The combined loader of the training epochs; ``trainer.train_dataloader`` drops its mode and limits."""
    return trainer.fit_loop._combined_loader


def loader_mode(loader: CombinedLoader) -> Any:
    """The mode of a combined loader, which the loader takes as an argument but has no public attribute for."""
    return loader._mode


def before_transfer(trainer: Trainer, batch: Any) -> Any:
    """Prepare a batch as the training epoch loop does before the transfer: convert its precision, and call the user's hook."""
    batch = trainer.precision_plugin.convert_input(batch)
    return trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)


def to_device(trainer: Trainer, batch: Any) -> Any:
    """Transfer a batch as the training epoch loop does, through the user's transfer hooks."""
    return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
