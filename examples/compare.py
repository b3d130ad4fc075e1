"""Compare SGD with VAMO on two real data sets that ship with scikit-learn, at equal epochs and at equal work.

python examples/compare.py                # both problems, three seeds, a few minutes on two cores
python examples/compare.py --problem diabetes --seeds 1

``diabetes`` is linear regression with 11 parameters, where the probes can span everything; ``digits`` is a multilayer
perceptron with 2,410 parameters, where random directions miss nearly everything.
"""

import argparse
import json
import logging
import statistics
import warnings
from pathlib import Path

import lightning as L
import torch
from digits import DigitsClassifier
from sklearn.datasets import load_diabetes, load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOCallback, with_vamo
from lightning_vamo.core.directions import OrthonormalDirections, SphereDirections


class Regression(L.LightningModule):
    """Linear least squares, trained with SGD at a constant learning rate.

    Args:
        features: Number of inputs.
        lr: Learning rate.
    """

    def __init__(self, features: int, lr: float) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Linear(features, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions, shape ``(batch,)``."""
        return self.net(inputs).squeeze(-1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Half the mean squared error."""
        return nn.functional.mse_loss(self(batch[0]), batch[1]) / 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Diabetes:
    """442 patients, ten measurements, standardised; the optimum is known."""

    epochs, probes = 30, (1, 4, 11)

    def __init__(self) -> None:
        inputs, targets = load_diabetes(return_X_y=True, scaled=True)
        inputs, targets = torch.tensor(inputs).double(), torch.tensor(targets).double()
        inputs, targets = (inputs - inputs.mean(0)) / inputs.std(0), (targets - targets.mean()) / targets.std()
        design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
        residual = design @ torch.linalg.lstsq(design, targets).solution - targets
        self.best = float(residual.square().mean() / 2)
        self.data = TensorDataset(inputs.float(), targets.float())

    def loader(self) -> DataLoader:
        """Shuffled batches of 16."""
        return DataLoader(self.data, 16, shuffle=True)

    def module(self) -> L.LightningModule:
        """A new model."""
        return Regression(10, lr=0.1)

    def loss(self, module: L.LightningModule) -> float:
        """Training loss above the optimum."""
        inputs, targets = self.data.tensors
        return float(nn.functional.mse_loss(module(inputs).double(), targets.double()) / 2) - self.best


class DigitsProblem:
    """1,797 digits and a small perceptron."""

    epochs, probes = 10, (1, 4, 16)

    def __init__(self) -> None:
        digits = load_digits()
        self.data = TensorDataset(torch.tensor(digits.images).float() / 16, torch.tensor(digits.target))

    def loader(self) -> DataLoader:
        """Shuffled batches of 32."""
        return DataLoader(self.data, 32, shuffle=True)

    def module(self) -> L.LightningModule:
        """A new model."""
        module = DigitsClassifier()
        module.log = lambda *args, **kwargs: None
        return module

    def loss(self, module: L.LightningModule) -> float:
        """Training loss."""
        images, labels = self.data.tensors
        return float(nn.functional.cross_entropy(module(images), labels))


def train(problem: Diabetes | DigitsProblem, seed: int, epochs: int, callback: VAMOCallback) -> dict[str, float]:
    """Train once and report the loss at the end, averaged over the last five epochs, with the callback's figures."""
    values = []

    class Losses(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            with torch.no_grad():
                values.append(problem.loss(module))

    L.seed_everything(seed, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=[callback, Losses()], **quiet)
    trainer.fit(with_vamo(problem.module()), problem.loader())
    report = callback.report
    return {
        "loss": statistics.mean(values[-5:]),
        "work": report.relative_cost * epochs,
        "seconds": report.training_seconds,
        "removed": report.variance_removed or 0.0,
    }


def methods(problem: Diabetes | DigitsProblem) -> dict[str, tuple[int, dict]]:
    """What to run, by name: the number of epochs, and the callback's arguments."""
    cost = 1 + (1 + max(problem.probes)) / 3
    runs = {"SGD": (problem.epochs, {"probes": 0})}
    for family in (SphereDirections, OrthonormalDirections):
        for probes in problem.probes:
            paper = {"probes": probes, "directions": family(), "alpha": "theory"}
            runs[f"VAMO, {family.__name__}, q = {probes}"] = (problem.epochs, paper)
    for probes in problem.probes:
        runs[f"VAMO, learned, adaptive, q = {probes}"] = (problem.epochs, {"probes": probes})
    runs["SGD, for the work of the largest q"] = (round(problem.epochs * cost), {"probes": 0})
    return runs


def plot(results: dict[str, dict[str, float]], path: Path) -> None:
    """Draw the loss against the work, one point for each method and one panel for each problem."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    problems = sorted({name.partition(": ")[0] for name in results})
    titles = {"diabetes": "linear regression, 11 parameters", "digits": "perceptron, 2,410 parameters"}
    figure, panels = plt.subplots(len(problems), 1, figsize=(6, 3.2 * len(problems)), layout="constrained", squeeze=False)
    styles = {"SGD": ("k", "s-"), "Orthonormal": ("tab:orange", "o-"), "learned": ("tab:blue", "^-")}
    for problem, axes in zip(problems, panels[:, 0], strict=True):
        for kind, (color, line) in styles.items():
            found = [run for name, run in results.items() if name.startswith(f"{problem}: ") and kind in name]
            points = [[run[key] for run in found] for key in ("work", "loss", "spread")]
            label = {"SGD": "SGD", "Orthonormal": "VAMO, random directions", "learned": "VAMO, learned directions"}[kind]
            axes.errorbar(*points, fmt=line, color=color, label=label, capsize=3)
        above = " above the optimum" if problem == "diabetes" else ""
        axes.set(title=titles[problem], xlabel="work, in epochs of SGD", ylabel=f"training loss{above}", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run the comparison, print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=["diabetes", "digits"], nargs="*", default=["diabetes", "digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="picture of the loss against the work")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = {}
    for name in arguments.problem:
        problem = {"diabetes": Diabetes, "digits": DigitsProblem}[name]()
        print(f"\n{name}: training loss{' above the optimum' if name == 'diabetes' else ''}, mean of the last five epochs")
        print(f"{'':45} {'loss':>10} {'+-':>8} {'removed':>9} {'work':>7} {'seconds':>8}")
        for method, (epochs, options) in methods(problem).items():
            runs = [train(problem, seed, epochs, VAMOCallback(**options)) for seed in range(arguments.seeds)]
            mean = {key: statistics.mean(run[key] for run in runs) for key in runs[0]}
            spread = statistics.stdev([run["loss"] for run in runs]) if len(runs) > 1 else 0.0
            results[f"{name}: {method}"] = {**mean, "spread": spread}
            figures = f"{mean['loss']:10.2e} {spread:8.1e} {mean['removed']:9.2%} {mean['work']:7.1f} {mean['seconds']:8.2f}"
            print(f"{method:45} {figures}", flush=True)
    print(
        "\nremoved: share of the gradient's second moment; work: epochs of plain SGD, a backward pass counted as two forwards"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
