"""Peak memory and time per step of each method, on a transformer of MiniLM's size that is made from a configuration.

python examples/benchmarks/methods_memory.py --plot docs/images/methods-memory.svg

Each method trains in a process of its own, which gives freed memory back. That makes peaks exact and allocation slow, so
times compare with one another on a quiet machine, and with nothing else. If torchzero is installed, its modules run beside.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from cost_training import silence
from peak import alone, can_be_read, held, peak, reset_peak
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import MeZOCallback, SVRGCallback, VAMOCallback, ZOSVRGCallback, with_vamo

WORDS, LENGTH, CLASSES = 30522, 512, 2
SIZES = {"minilm": (384, 12, 1536, 6), "small": (128, 4, 512, 2), "tiny": (32, 4, 64, 2)}
"""Width, heads, hidden width and layers; ``minilm`` has the 22.7 million parameters of all-MiniLM-L6."""


class Encoder(nn.Module):
    """A sentence classifier: embeddings, a transformer encoder, and a head on the mean of the tokens."""

    def __init__(self, size: str) -> None:
        super().__init__()
        width, heads, hidden, layers = SIZES[size]
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pool, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(batch, CLASSES)``."""
        hidden = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        return self.head(self.pool(self.layers(hidden).mean(dim=1)).tanh())


class Classifier(L.LightningModule):
    """Trains the encoder with SGD or AdamW."""

    def __init__(self, size: str, optimizer: str = "SGD") -> None:
        super().__init__()
        self.net, self.optimizer = Encoder(size), optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer."""
        return getattr(torch.optim, self.optimizer)(self.parameters(), lr=1e-4)


class Clock(L.Callback):
    """The time of each step, from its batch's first hook to its last."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Stop."""
        self.seconds.append(time.perf_counter() - self._start)


def fitted(options: argparse.Namespace, callback: L.Callback | None, optimizer: str = "SGD") -> list[float]:
    """Fit for three epochs; the seconds of each step of the last one, in which every method is in its stride."""
    module, clock = Classifier(options.size, optimizer), Clock()
    # The clock stands last: sweeps, which are made at the start of an epoch's first batch, are no step's.
    callbacks = [clock] if callback is None else [callback, clock]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator=options.device, devices=1, max_epochs=3, callbacks=callbacks, **quiet)
    trainer.fit(module if callback is None else with_vamo(module), data(options))
    return clock.seconds[-options.steps :]


def data(options: argparse.Namespace) -> DataLoader:
    """Random sentences."""
    generator = torch.Generator().manual_seed(0)
    count = options.steps * options.batch_size
    tokens = torch.randint(WORDS, (count, options.tokens), generator=generator)
    return DataLoader(TensorDataset(tokens, torch.randint(CLASSES, (count,), generator=generator)), options.batch_size)


def timed(step: Callable[[list[Tensor]], object], batches: Iterator[list[Tensor]]) -> list[float]:
    """The seconds of each call."""
    seconds = []
    for batch in batches:
        start = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - start)
    return seconds


def inference(options: argparse.Namespace) -> list[float]:
    """Forward passes under ``no_grad``."""
    net = Encoder(options.size).to(options.device)
    with torch.no_grad():
        return timed(lambda batch: net(batch[0].to(options.device)), iter(data(options)))


def torchzero(options: argparse.Namespace, module: str) -> list[float]:
    """The same model under a module of torchzero, in a plain loop."""
    import torchzero as tz

    net = Encoder(options.size).to(options.device)
    # With two evaluations per step, as here; by default it evaluates the batch a third time.
    mezo = tz.m.MeZO(distribution="gaussian", return_approx_loss=True)
    made = mezo if module == "MeZO" else tz.m.SVRG(options.steps)
    optimizer = tz.Optimizer(net.parameters(), made, tz.m.LR(1e-4))

    def step(batch: list[Tensor]) -> None:
        tokens, labels = (part.to(options.device) for part in batch)

        def closure(backward: bool = True) -> Tensor:
            loss = nn.functional.cross_entropy(net(tokens), labels)
            if backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        optimizer.step(closure)

    # Its SVRG takes an epoch for the full gradient, in which it does not step.
    passes = [timed(step, iter(data(options))) for _ in range(2 if module == "SVRG" else 1)]
    return passes[-1]


METHODS: dict[str, Callable[[argparse.Namespace], list[float]]] = {
    "inference": inference,
    "MeZO": lambda options: fitted(options, MeZOCallback()),
    "ZO-SVRG": lambda options: fitted(options, ZOSVRGCallback()),
    "SGD": lambda options: fitted(options, None),
    "AdamW": lambda options: fitted(options, None, "AdamW"),
    "VAMO": lambda options: fitted(options, VAMOCallback(probes=1)),
    "VAMO, carry": lambda options: fitted(options, VAMOCallback(probes=4, control="carry")),
    "SVRG": lambda options: fitted(options, SVRGCallback()),
    "SVRG, carry": lambda options: fitted(options, SVRGCallback(gradients="carry")),
}
if importlib.util.find_spec("torchzero"):
    METHODS |= {f"torchzero {name}": lambda options, name=name: torchzero(options, name) for name in ("MeZO", "SVRG")}


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run a method in this process, which has done nothing before; bytes and seconds."""
    silence()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    METHODS["inference" if name == "inference" else "SGD"](argparse.Namespace(**{**vars(options), "size": "tiny"}))  # libraries
    before = held(device)
    reset_peak(device)
    seconds = METHODS[name](options)
    taken = peak(device) - before
    dimension = sum(parameter.numel() for parameter in Encoder(options.size).parameters())  # a second model, not counted
    return {"bytes": taken, "seconds": median(seconds), "parameters": dimension}


def plotted(found: dict[str, dict[str, float]], path: str) -> None:
    """Draw the peaks as bars, in units of the weights, to an SVG file."""
    import panels  # matplotlib is for those who draw

    axes = panels.panel((4.2, 0.3 * len(found) + 0.7))
    names = list(found)[::-1]
    sizes = [found[name]["bytes"] / (4 * found[name]["parameters"]) for name in names]
    colors = ["tab:gray" if name.startswith("torchzero") else "tab:blue" for name in names]
    axes.bar_label(axes.barh(names, sizes, color=colors), fmt=" %.2f", padding=2)
    axes.grid(visible=False)
    axes.set(xlabel="peak memory, in sizes of the weights", xlim=(0, 1.18 * max(sizes)))
    panels.save(axes.figure, path)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="minilm")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    for name, value in (("batch-size", 8), ("tokens", 32), ("steps", 4), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", help="file to keep the figures in: methods that are in it are not measured again")
    parser.add_argument("--plot")
    options = parser.parse_args()
    if not can_be_read(torch.device(options.device)):
        sys.exit("The peak of a process's memory is read from Linux's /proc.")
    file = Path(options.json) if options.json else None
    found = json.loads(file.read_text()) if file is not None and file.exists() else {}
    for name in options.methods:
        if name not in found:
            found[name] = alone(measured, name, options)
        if file is not None:
            file.write_text(json.dumps(found, indent=2) + "\n")
    found = {name: found[name] for name in options.methods}
    print(f"| {found[options.methods[0]]['parameters']:,} parameters | peak memory | sizes of the weights | seconds per step |")
    print("|---|---|---|---|")
    for name, row in found.items():
        weights = row["bytes"] / (4 * row["parameters"])
        print(f"| {name} | {row['bytes'] / 1e6:,.0f} MB | {weights:.2f} | {row['seconds']:.3f} |")
    if options.plot:
        plotted(found, options.plot)


if __name__ == "__main__":
    main()
