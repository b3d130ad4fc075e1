"""What rows that are carried from epoch to epoch save, on regularised logistic regression, with SGD's and SVRG's figures.

Each method trains from zeros with a constant learning rate in batches of 16. The gap is that of the training loss to its least
value, the mean over the last epochs; the variance removed is the share of the gradient's second moment, over the same epochs.
Times are medians over the epochs, of runs that take turns: by the clock, and by the processor, which other work on the
machine disturbs less; there is one thread, so on an idle machine they are the same.

python examples/benchmarks/carried.py --mnist FOLDER     # 8,192 of MNIST's test images, standardised
python examples/benchmarks/carried.py                    # scikit-learn's digits, for a quick look

It prints a Markdown table. ``--json FILE`` writes the figures after each run, and goes on from those that FILE holds; only the
methods whose names contain one of ``--methods`` are run.
"""

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from cost_models import perceptron
from least import least_loss
from subspace import digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import Carry, SVRGCallback, VAMOCallback, with_vamo
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections

L2 = 1e-3


class Logistic(L.LightningModule):
    """Softmax regression with a penalty on all weights, from zeros, by plain SGD.

    Args:
        data: All training samples, images first.
        lr: Learning rate.
    """

    def __init__(self, data: TensorDataset, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.data = data
        self.net = nn.Linear(data.tensors[0].shape[1], 10)
        for parameter in self.net.parameters():
            nn.init.zeros_(parameter)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and penalty."""
        return nn.functional.cross_entropy(self.net(images), labels) + penalty(self.net.parameters())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def penalty(parameters: Any) -> Tensor:
    """Half the squared norm, times ``L2``."""
    return L2 / 2 * sum(parameter.square().sum() for parameter in parameters)


def learned(probes: int, rank: int | None = 1, **arguments: Any) -> VAMOCallback:
    """Probes along directions that the first epoch, which trains plainly, learns for the second."""
    directions = GradientSubspaceDirections(rank, warmup_batches=0)
    return VAMOCallback(probes=probes, directions=directions, alpha="adaptive", **arguments)


def kept() -> VAMOCallback:
    """Corrects nothing, and keeps the composition of the batches."""
    return VAMOCallback(probes=1, directions=OrthonormalDirections(), alpha=0.0, control="carry")


METHODS: dict[str, Callable[[], VAMOCallback | SVRGCallback | None]] = {
    "SGD": lambda: None,
    "SGD, batches kept": kept,
    "a sweep every epoch, q = 8": lambda: learned(8),
    "a sweep every epoch, q = 16": lambda: learned(16),
    "carried, a sweep every 5 epochs, q = 16": lambda: learned(
        16, control=Carry(sweep_every_n_epochs=5, turn_every_n_epochs=5)
    ),
    "carried, no sweep, q = 8": lambda: learned(8, control="carry"),
    "carried, no sweep, q = 16": lambda: learned(16, control="carry"),
    "carried, no sweep, q = 16, decay = 0": lambda: learned(16, control=Carry(decay=0.0)),
    "carried, no sweep, q = 32": lambda: learned(32, control="carry"),
    "carried, no sweep, dense, q = 8": lambda: learned(8, None, control="carry"),
    "carried, no sweep, dense, q = 16": lambda: learned(16, None, control="carry"),
    "carried, no sweep, dense, q = 32": lambda: learned(32, None, control="carry"),
    "carried, no sweep, dense, q = 32, decay = 0": lambda: learned(32, None, control=Carry(decay=0.0)),
    "FO-SVRG": lambda: SVRGCallback(gradients="recompute"),
}


@dataclass
class Watch(L.Callback):
    """Takes the time of each epoch, and then the loss over all samples."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        """Begin."""
        self.start = time.perf_counter(), time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """End."""
        self.seconds.append(time.perf_counter() - self.start[0])
        self.processor_seconds.append(time.process_time() - self.start[1])
        with torch.no_grad():
            self.losses.append(float(module.loss(*module.data.tensors)))


class Removed(L.Callback):
    """Keeps what each epoch has removed; behind the callback that logs it.

    Args:
        prefix: What the names of the callback's figures begin with.
    """

    def __init__(self, prefix: str) -> None:
        self.name, self.shares = f"{prefix}/variance_removed", list[float]()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Read the last figure."""
        self.shares.append(float(trainer.callback_metrics.get(self.name, 0.0)))


def train(method: str, data: TensorDataset, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train once.

    Args:
        method: Which of ``METHODS``.
        data: The training samples.
        arguments: Those of the command line.
        seed: Of the order of the samples.

    Returns:
        Losses, seconds and shares by epoch, and how many batches were evaluated for each that was trained on.
    """
    L.seed_everything(seed, verbose=False)
    module = Logistic(data, arguments.lr)
    vamo, watch = METHODS[method](), Watch()
    removed = Removed("vamo" if vamo is None else vamo.prefix)
    if vamo is not None:
        module = with_vamo(module)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [watch, *([] if vamo is None else [vamo]), removed]
    trainer = L.Trainer(accelerator="cpu", max_epochs=arguments.epochs, callbacks=callbacks, **quiet)
    trainer.fit(module, DataLoader(data, 16, shuffle=True, drop_last=True))
    forwards = 0.0
    if vamo is not None:
        forwards = vamo.report.forward_evaluations / trainer.global_step - 1
    times = {"clock": watch.seconds, "processor": watch.processor_seconds}
    return {"losses": watch.losses, **times, "removed": removed.shares, "forwards": forwards}


def table(runs: dict[str, list[dict[str, Any]]], least: float, last: int) -> None:
    """Print the figures: means over the runs, with the standard deviation of the gap."""
    print("| method | forwards beyond SGD's | gap | variance removed | time per epoch, SGD's = 1 | processor time |")
    print("|---|---|---|---|---|---|")
    for method, tries in runs.items():
        gaps = [statistics.mean(run["losses"][-last:]) - least for run in tries]
        spread = f" ± {statistics.stdev(gaps):.4f}" if len(gaps) > 1 else ""
        share = statistics.mean(statistics.mean(run["removed"][-last:]) for run in tries)
        cells = [f"{statistics.mean(run['forwards'] for run in tries):.3g}", f"{statistics.mean(gaps):.4f}{spread}"]
        cells.append(f"{share:.2f}" if share else "–")
        for kind in ("clock", "processor"):
            pair = tries, runs.get("SGD", tries)
            seconds, plain = (statistics.median(x for run in some for x in run[kind]) for some in pair)
            cells.append(f"{seconds / plain:.2f}")
        print(f"| {method} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, print, and write as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--last", type=int, default=5, help="epochs to average over")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--methods", nargs="+", default=[""], metavar="PART")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    images, labels = digits() if arguments.mnist is None else perceptron(arguments.mnist).data[:8192]
    images = (images - images.mean()) / images.std()
    data = TensorDataset(images, labels)
    module = Logistic(TensorDataset(data.tensors[0].double(), data.tensors[1]), 0.0).double()
    least = least_loss(module, lambda: module.loss(*module.data.tensors), L2)
    runs: dict[str, list[dict[str, Any]]] = {}
    if arguments.json is not None and arguments.json.exists():
        runs = json.loads(arguments.json.read_text())["runs"]
    for seed in range(arguments.seeds):
        for method in METHODS:
            done = runs.setdefault(method, [])
            if len(done) > seed or not any(part in method for part in arguments.methods):
                continue
            done.append(train(method, data, arguments, seed))
            print(f"seed {seed}, {method}: {sum(done[-1]['clock']):.0f} s", file=sys.stderr, flush=True)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps({"least": least, "runs": runs}, indent=2))
    table({method: runs[method] for method in METHODS if runs[method]}, least, arguments.last)


if __name__ == "__main__":
    main()
