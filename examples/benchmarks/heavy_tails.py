"""Whether corrections do harm where a few samples give enormous gradients: prices of diamonds, some with impossible sizes.

A perceptron (26-64-64-1) predicts the standardised logarithm of the price, in batches of 16. The table has the share of the
gradient's second moment that each epoch's corrections removed, and its mean training loss, with the table as it is and without
its outliers. A share below zero says that the corrections added noise.

python -m examples.benchmarks.heavy_tails --diamonds FOLDER      # holds diamonds.csv.gz of ggplot2
"""

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.benchmarks.evidence.data import Batches, diamonds
from lightning_vamo import VAMOCallback, with_vamo

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
}
METHODS: dict[str, tuple[str, int]] = {"carried rows": ("carry", 16), "sweeps": ("replay", 4)}


class Prices(L.LightningModule):
    """A perceptron with the squared error.

    Args:
        optimizer: Which of ``OPTIMIZERS``.
    """

    def __init__(self, optimizer: str) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.net = nn.Sequential(nn.Linear(26, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        loss = nn.functional.mse_loss(self.net(batch[0]).squeeze(-1), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer by name."""
        return OPTIMIZERS[self.optimizer](self.parameters())


class Watch(L.Callback):
    """Keeps what each epoch has removed, and its loss; behind the callback that logs it."""

    def __init__(self) -> None:
        self.removed: list[float] = []
        self.losses: list[float] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Read the last figures."""
        self.removed.append(float(trainer.callback_metrics.get("vamo/variance_removed", torch.nan)))
        self.losses.append(float(trainer.callback_metrics["loss"]))


def train(data: Batches, optimizer: str, method: str, epochs: int, seed: int = 0) -> Watch:
    """Train once, and return what was seen."""
    L.seed_everything(seed, verbose=False)
    control, probes = METHODS[method]
    watch = Watch()
    callbacks = [VAMOCallback(probes=probes, control=control, alpha="adaptive"), watch]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **quiet)
    trainer.fit(with_vamo(Prices(optimizer)), DataLoader(data, 16, shuffle=True, drop_last=True, collate_fn=list))
    return watch


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diamonds", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=list(OPTIMIZERS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| data | optimizer | method | variance removed by epoch | loss by epoch |\n|---|---|---|---|---|")
    for outliers in (True, False):
        data = Batches(*(each[: arguments.samples] for each in diamonds(arguments.diamonds, outliers=outliers)))
        for optimizer in arguments.optimizers:
            for method in arguments.methods:
                seen = train(data, optimizer, method, arguments.epochs)
                cells = ["as it is" if outliers else "without outliers", optimizer, method]
                cells.append(", ".join(f"{share:.3f}" for share in seen.removed))
                cells.append(", ".join(f"{loss:.4f}" for loss in seen.losses))
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
