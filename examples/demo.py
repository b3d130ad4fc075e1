"""Train a linear model on noisy data twice, plainly and with ``VAMOCallback()``, and print both: ``make demo`` runs this.

The data are scikit-learn's 442 patients with diabetes: ten measurements of each explain half of how far the disease has come a
year later. So gradients of batches of eight are noisy, and at a constant learning rate plain SGD stays above the least loss.

python examples/demo.py [--epochs N] [--seed N]
"""

import argparse
import logging
import time
import warnings

import lightning as L
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOCallback, with_vamo


class Progression(L.LightningModule):
    """A linear model of the progression of diabetes, trained by SGD; nothing here knows of VAMO.

    Args:
        lr: Learning rate, constant.
    """

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Linear(10, 1)

    def loss(self, measurements: Tensor, progression: Tensor) -> Tensor:
        """The mean squared error."""
        return nn.functional.mse_loss(self.net(measurements).squeeze(-1), progression)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def patients() -> TensorDataset:
    """Measurements, shape ``(442, 10)``, and progression, shape ``(442,)``, all with mean 0 and variance 1."""
    measurements, progression = (torch.tensor(values).float() for values in load_diabetes(return_X_y=True))
    return TensorDataset(*((values - values.mean(0)) / values.std(0) for values in (measurements, progression)))


class Losses(L.Callback):
    """Keeps the loss over all samples at the end of each epoch."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data
        self.losses: list[float] = []

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: Progression) -> None:
        """Measure."""
        self.losses.append(float(module.loss(*self.data.tensors)))


def train(data: TensorDataset, epochs: int, seed: int, callback: VAMOCallback | None = None) -> list[float]:
    """Train once.

    Args:
        data: The samples.
        epochs: How long.
        seed: Seed of the weights and of the order of the samples.
        callback: The callback of VAMO; None for plain training.

    Returns:
        The loss over all samples, epoch by epoch.
    """
    L.seed_everything(seed, verbose=False)
    module: L.LightningModule = Progression()
    if callback is not None:
        module = with_vamo(module)
    losses = Losses(data)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [losses] if callback is None else [callback, losses]
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **quiet)
    trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True))
    return losses.losses


def least_loss(data: TensorDataset) -> float:
    """The least loss that any linear model has on the samples."""
    measurements, progression = data.tensors
    inputs = torch.cat((measurements, torch.ones(len(measurements), 1)), dim=1)
    weights = torch.linalg.lstsq(inputs, progression[:, None]).solution
    return float((inputs @ weights - progression[:, None]).square().mean())


def main() -> None:
    """Train both, and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data, vamo = patients(), VAMOCallback(verbose=False)
    least = least_loss(data)
    print(f"A linear model on scikit-learn's diabetes data, by SGD at a constant rate, {arguments.epochs} epochs.")
    print(f"The least training loss of such a model is {least:.4f}.\n")
    runs, seconds = {}, {}
    for name, callback in (("plain", None), ("VAMO", vamo)):
        start = time.perf_counter()
        runs[name] = train(data, arguments.epochs, arguments.seed, callback)
        seconds[name] = time.perf_counter() - start
    for decided in vamo.report.decisions:
        print(f"VAMO, epoch {decided.epoch}: {decided.reason}.")
    batches = vamo.report.batches
    evaluations = {"plain": (batches, batches), "VAMO": (vamo.report.forward_evaluations, vamo.report.backward_evaluations)}
    print("\n            training loss above the least      forward and backward")
    print("         after 3 epochs   mean of last half     evaluations of a batch    seconds")
    for name, losses in runs.items():
        above = [loss - least for loss in losses]
        late = sum(above[len(above) // 2 :]) / (len(above) - len(above) // 2)
        forwards, backwards = evaluations[name]
        counts = f"{forwards:>15} and {backwards} {seconds[name]:>13.1f}"
        print(f"{name:<8} {above[min(2, len(above) - 1)]:>14.4f} {late:>19.5f} {counts}")
    print(f"\n{vamo.report}")


if __name__ == "__main__":
    main()
