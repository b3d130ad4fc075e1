"""Time per step of MeZO and SVRG: this package beside torchzero's modules, which do the same work, in one run.

pip install '.[benchmarks]' torchzero
python examples/benchmarks/torchzero_steps.py

torchzero runs in a plain loop, which has none of Lightning's work, and in a LightningModule with manual optimization, as
someone would use it under Lightning. All three read the same batches, make the same number of evaluations, and step at the same
rate. The ways take turns, and the time is that of the processor, for an epoch from its start to the start of the next.

This package trains in Lightning's automatic loop, so that clipping, accumulation, schedulers and checkpoints work as ever. The
loop alone is that of a module with a single weight. The last ratio is to that loop with torchzero's work in it: its plain loop
without the loading of batches.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from cost_training import silence
from methods_memory import WORDS, Encoder
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import MeZOCallback, SVRGCallback, with_vamo

LR = 1e-4
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

MODELS: dict[str, Callable[[], nn.Module]] = {
    "tiny": lambda: nn.Linear(64, 10),
    "mlp": lambda: nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)),
    "transformer": lambda: Encoder("small"),
}
WIDTHS = {"tiny": 64, "mlp": 784}


def data(model: str, options: argparse.Namespace) -> DataLoader[Any]:
    """Random inputs and labels."""
    generator = torch.Generator().manual_seed(0)
    count = options.steps * options.batch_size
    labels = torch.randint(2, (count,), generator=generator)
    if model in WIDTHS:
        inputs = torch.randn(count, WIDTHS[model], generator=generator)
    else:
        inputs = torch.randint(WORDS, (count, options.tokens), generator=generator)
    return DataLoader(TensorDataset(inputs, labels), options.batch_size)


class Classifier(L.LightningModule):
    """Cross-entropy, and plain SGD."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=LR)


class Idle(L.LightningModule):
    """A single weight, so that next to all of a step's time is Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The weight."""
        return 1 * self.weight

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=LR)


class Torchzero:
    """A network that a module of torchzero trains.

    Args:
        net: The network.
        method: ``"MeZO"`` or ``"SVRG"``.
        loader: The batches, which SVRG takes the full gradient of.
    """

    def __init__(self, net: nn.Module, method: str, loader: DataLoader[Any]) -> None:
        import torchzero as tz

        # With two evaluations per step, as here; by default it evaluates the batch a third time.
        mezo = tz.m.MeZO(distribution="gaussian", return_approx_loss=True) if method == "MeZO" else None
        self.net, self.loader, self.method = net, loader, method
        self.optimizer = tz.Optimizer(net.parameters(), mezo or tz.m.SVRG(len(loader)), tz.m.LR(LR))

    def loss(self, batch: list[Tensor]) -> Tensor:
        """The cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def full(self) -> Tensor:
        """The gradient of all batches."""
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for batch in self.loader:
            loss = self.loss(batch) / len(self.loader)
            loss.backward()
            total += loss.detach()
        return total

    def step(self, batch: list[Tensor]) -> None:
        """Train on a batch; SVRG's first of an epoch takes the full gradient before."""

        def closure(backward: bool = True) -> Tensor:
            loss = self.loss(batch)
            if backward:
                self.optimizer.zero_grad()
                loss.backward()
            return loss

        self.optimizer.step(closure, **({"full_closure": self.full} if self.method == "SVRG" else {}))


class Manual(Classifier):
    """The same in a module with manual optimization."""

    def __init__(self, net: nn.Module, method: str, loader: DataLoader[Any]) -> None:
        super().__init__(net)
        self.automatic_optimization = False
        self.torchzero = Torchzero(net, method, loader)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Train on a batch."""
        self.torchzero.step(batch)

    def configure_optimizers(self) -> Any:
        """The optimizer of torchzero, which Lightning cannot wrap: it would call the closure without its argument."""
        return None


class Clock(L.Callback):
    """The processor's time when each epoch starts."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Read it."""
        self.times.append(time.process_time())


def fitted(module: L.LightningModule, loader: DataLoader[Any], callback: L.Callback | None = None) -> float:
    """Fit; the seconds of the second epoch."""
    clock = Clock()
    trainer = L.Trainer(accelerator="cpu", max_epochs=3, callbacks=[clock, *([callback] if callback else [])], **QUIET)
    trainer.fit(module, loader)
    return clock.times[2] - clock.times[1]


def looped(trained: Torchzero) -> float:
    """Train for two epochs in a plain loop; the seconds of the second."""
    for _ in range(2):
        start = time.process_time()
        for batch in trained.loader:
            trained.step(batch)
    return time.process_time() - start


def loaded(loader: DataLoader[Any]) -> float:
    """Load the batches of two epochs; the seconds of the second."""
    for _ in range(2):
        start = time.process_time()
        for _ in loader:
            pass
    return time.process_time() - start


def ways(model: str, method: str, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """The ways to train a model."""

    def ours() -> float:
        callback = MeZOCallback(verbose=False) if method == "MeZO" else SVRGCallback(verbose=False)
        return fitted(with_vamo(Classifier(MODELS[model]())), data(model, options), callback)

    def manual() -> float:
        loader = data(model, options)
        return fitted(Manual(MODELS[model](), method, loader), loader)

    return {
        "lightning_vamo": ours,
        "torchzero, Lightning": manual,
        "torchzero, plain loop": lambda: looped(Torchzero(MODELS[model](), method, data(model, options))),
        "SGD, Lightning": lambda: fitted(Classifier(MODELS[model]()), data(model, options)),
        "Lightning's loop": lambda: fitted(Idle(), data(model, options)),
        "batches": lambda: loaded(data(model, options)),
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=("MeZO", "SVRG"), default=["MeZO", "SVRG"])
    for name, value in (("batch-size", 16), ("tokens", 32), ("steps", 32), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    silence()
    torch.set_num_threads(1)
    found: dict[str, dict[str, list[float]]] = {}
    for model in options.models:
        for method in options.methods:
            kinds = ways(model, method, options)
            times: dict[str, list[float]] = {name: [] for name in kinds}
            for _ in range(options.rounds):
                for name, way in kinds.items():
                    times[name].append(way() / options.steps)
            found[f"{method}, {model}"] = times
    ratios = ["Lightning", "plain loop", "in the same loop"]
    header = ["milliseconds of the processor per step", *kinds, *(f"ratio, {ratio}" for ratio in ratios)]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name, times in found.items():
        cells = [f"{1000 * median(seconds):.2f}" for seconds in times.values()]
        ours, manual, plain, _, loop, batches = times.values()
        others = [manual, plain, [idle + work - load for idle, work, load in zip(loop, plain, batches, strict=True)]]
        cells += [f"{median(one / other for one, other in zip(ours, rounds, strict=True)):.2f}" for rounds in others]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
