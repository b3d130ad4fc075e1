"""A small recurrent network that predicts the next character of a text."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from examples.benchmarks.evidence.data import Samples
from examples.benchmarks.evidence.networks import data_loss


class Text(Samples):
    """Windows of a text, with the characters that follow each of theirs.

    Args:
        file: The text.
        length: Characters of a window.
        train_size: Number of windows to train on: the text's first.
        val_size: Number of windows to validate on: those behind them.
        batch_size: Windows per batch.
    """

    def __init__(self, file: str, length: int = 32, train_size: int = 1536, val_size: int = 384, batch_size: int = 16) -> None:
        text = Path(file).read_text(encoding="utf-8")
        kinds = {character: number for number, character in enumerate(sorted(set(text)))}
        codes = torch.tensor([kinds[character] for character in text[: (train_size + val_size) * length + 1]])
        super().__init__(codes[:-1].view(-1, length), codes[1:].view(-1, length), train_size, batch_size)
        self.parts = {
            name: [(inputs[:512], targets[:512].flatten()) for inputs, targets in part] for name, part in self.parts.items()
        }


class CharacterModel(L.LightningModule):
    """Embeddings, a GRU, and logits for the next character.

    Args:
        characters: How many kinds of characters there are.
        hidden: Units of the GRU.
        lr: Learning rate of Adam.
    """

    def __init__(self, characters: int = 65, hidden: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(characters, 32)
        self.gru = nn.GRU(32, hidden, batch_first=True)
        self.head = nn.Linear(hidden, characters)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits, shape ``(windows * length, characters)``, of windows of characters, shape ``(windows, length)``."""
        return self.head(self.gru(self.embedding(codes))[0]).flatten(0, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        return data_loss(self(batch[0]), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, at a constant rate."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
