"""How exact are probe differences? Sweeps in several precisions against exact slopes in float64.

For multilayer perceptrons of three sizes, a sweep over eight batches along four random directions is compared with
directional derivatives by ``torch.func.jvp``. Reported are

* the relative error of the probe differences, and of the centred ones, which are what corrects gradients:
  root of the mean squared error over root of the mean square;
* ``vamo/probe_snr``, the estimate of signal over error that the package logs, which knows no exact slopes.

Run it with ``python examples/benchmarks/precision.py``. It prints a Markdown table; ``--json FILE`` writes the figures.
"""

import argparse
import copy
import itertools
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import RunObserver, VAMOCallback, with_vamo
from lightning_vamo.core.directions import SphereDirections

WIDTHS = {"small": (32, 32, 32, 10), "medium": (784, 512, 512, 10), "large": (1024, 2560, 2560, 10)}
PRECISIONS = {
    "32-true": {"precision": "32-true"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-mixed, float32 sweep": {"precision": "bf16-mixed", "sweep_precision": "32-true"},
}


class Perceptron(L.LightningModule):
    """A tanh multilayer perceptron without dropout, so that its loss is a function of the weights and the batch."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers = [nn.Linear(wide, narrow) for wide, narrow in itertools.pairwise(widths)]
        self.net = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())))[:-1]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, which is not used."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def slopes(module: Perceptron, loader: DataLoader, directions: Any) -> Tensor:
    """Exact slopes of every batch along every direction, shape ``(K, q)``, in float64."""
    net = copy.deepcopy(module.net).double()
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    zeros = [torch.zeros_like(p) for p in module.parameters()]
    table = []
    for inputs, labels in loader:
        row = []
        for index in range(directions.count):
            step = [torch.empty_like(zero) for zero in zeros]
            directions.move(step, zeros, index, 1.0)
            tangents = {name: part.double() for name, part in zip(parameters, step, strict=True)}

            def loss(at: dict[str, Tensor], inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                return nn.functional.cross_entropy(functional_call(net, at, (inputs.double(),)), labels)

            row.append(jvp(loss, (parameters,), (tangents,))[1])
        table.append(torch.stack(row))
    return torch.stack(table)


def measure(widths: tuple[int, ...], difference: str, precision: str, exact: dict[Any, Tensor], **options: Any) -> dict:
    """One sweep, compared with the exact slopes, which are worked out once per size."""
    L.seed_everything(0, verbose=False)
    module = with_vamo(Perceptron(widths))
    data = TensorDataset(torch.randn(8 * 64, widths[0]), torch.randint(10, (8 * 64,)))
    loader = DataLoader(data, 64)
    watch = Comparison(module, loader, exact.get(widths))
    callback = VAMOCallback(probes=4, directions=SphereDirections(), difference=difference, seed=0, **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, precision=precision, callbacks=[callback, watch], **quiet)
    trainer.fit(module, loader)
    exact[widths] = watch.exact
    return {"parameters": sum(parameter.numel() for parameter in module.parameters()), **watch.result}


class Comparison(RunObserver):
    """Compares what a sweep measures with exact slopes.

    Args:
        module: The module.
        loader: Its batches.
        exact: The exact slopes, if they are known already.
    """

    def __init__(self, module: Any, loader: DataLoader, exact: Tensor | None) -> None:
        self.module = module
        self.loader = loader
        self.exact = exact
        self.result: dict[str, Any] = {}

    def on_snapshot(self, trainer: L.Trainer, module: L.LightningModule, snapshot: Any) -> None:
        """Compare: the weights are still those of the snapshot."""
        if self.exact is None:
            self.exact = slopes(self.module, self.loader, snapshot.directions)
        error = snapshot.sweep.deltas.double() - self.exact
        self.result["error"] = ratio(error, self.exact)
        self.result["centred error"] = ratio(error - error.mean(0), self.exact - self.exact.mean(0))
        self.result["snr"] = snapshot.sweep.snr


def ratio(error: Tensor, exact: Tensor) -> float:
    """Relative error."""
    return float(error.norm() / exact.norm())


def main() -> None:
    """Measure all, print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", choices=WIDTHS, nargs="*", default=list(WIDTHS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results, exact = [], {}
    print("| parameters | sweep | differences | error | centred error | `vamo/probe_snr` |")
    print("|---|---|---|---|---|---|")
    for size in arguments.sizes:
        for name, options in PRECISIONS.items():
            for difference in ("forward", "central"):
                row = measure(WIDTHS[size], difference, exact=exact, **options)
                results.append({"sweep": name, "difference": difference, **row})
                figures = f"{row['error']:.2%} | {row['centred error']:.2%} | {row['snr']:.2g}"
                print(f"| {row['parameters']:,} | {name} | {difference} | {figures} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
