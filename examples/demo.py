"""Train a linear model on noisy data twice, plainly and with ``VAMOCallback()``, and print both: ``make demo`` runs this.

Both trainings are those of a configuration for the command, the plain one with ``--vamo.probes=0``:

lightning-vamo fit --config examples/diabetes.yaml

python examples/demo.py [ARGUMENTS OF lightning-vamo fit, such as --trainer.max_epochs=10]
"""

import logging
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch

from lightning_vamo import VAMOCallback
from lightning_vamo.cli import VAMOCLI

QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


class Losses(L.Callback):
    """Keeps the loss over all samples at the end of each epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the loss."""
        self.losses.append(float(trainer.callback_metrics["full_loss"]))


class DemoCLI(VAMOCLI):
    """The command, without its last words."""

    def after_fit(self) -> None:
        """Print nothing: the demo prints both runs."""


def fit(*arguments: str) -> tuple[DemoCLI, list[float], float]:
    """Train as the command would.

    Args:
        *arguments: Arguments beside the configuration.

    Returns:
        The command, the loss over all samples after each epoch, and the seconds that it took.
    """
    start, losses = time.perf_counter(), Losses()
    quiet = {**dict.fromkeys(QUIET, False), "callbacks": [losses]}
    config = Path(__file__).with_name("diabetes.yaml")
    cli = DemoCLI(args=["fit", f"--config={config}", *arguments], trainer_defaults=quiet, save_config_callback=None)
    return cli, losses.losses, time.perf_counter() - start


def main() -> None:
    """Train both, and print both."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # the configuration names classes in examples/
    warnings.filterwarnings("ignore", module="lightning|jsonargparse")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    runs = {name: fit(*options, *sys.argv[1:]) for name, options in (("plain", ["--vamo.probes=0"]), ("VAMO", []))}
    least = runs["VAMO"][0].datamodule.least_loss()
    [vamo] = [c for c in runs["VAMO"][0].trainer.callbacks if isinstance(c, VAMOCallback)]
    print("A linear model on scikit-learn's diabetes data, by SGD at a constant rate: examples/diabetes.yaml.")
    print(f"The least training loss of such a model is {least:.4f}.\n")
    for decided in vamo.report.decisions:
        print(f"VAMO, epoch {decided.epoch}: {decided.reason}.")
    steps = runs["plain"][0].trainer.global_step
    evaluations = {"plain": (steps, steps), "VAMO": (vamo.report.forward_evaluations, vamo.report.backward_evaluations)}
    print("\n            training loss above the least      forward and backward")
    print("        after 12 epochs   mean of last half     evaluations of a batch    seconds")
    for name, (_, losses, seconds) in runs.items():
        above = [loss - least for loss in losses]
        late = sum(above[len(above) // 2 :]) / (len(above) - len(above) // 2)
        forwards, backwards = evaluations[name]
        counts = f"{forwards:>15} and {backwards} {seconds:>13.1f}"
        print(f"{name:<8} {above[min(11, len(above) - 1)]:>14.4f} {late:>19.5f} {counts}")
    print(f"\n{vamo.report}")


if __name__ == "__main__":
    main()
