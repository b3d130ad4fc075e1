"""A plain LightningModule and LightningDataModule for scikit-learn's digits: nothing here knows of VAMO."""

import lightning as L
import torch
import torchmetrics
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class DigitsClassifier(L.LightningModule):
    """A multilayer perceptron for 8 x 8 images of handwritten digits.

    Args:
        width: Units of the hidden layer.
        lr: Learning rate of SGD.
        momentum: Momentum of SGD.
    """

    def __init__(self, width: int = 32, lr: float = 0.1, momentum: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(batch, 10)``."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch."""
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy and cross-entropy of a batch."""
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_acc", self.accuracy, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=self.hparams.momentum)


class Digits(L.LightningDataModule):
    """scikit-learn's 1,797 digits, 1,437 to train on and 360 to validate on.

    Args:
        batch_size: Images per batch.
        num_workers: Worker processes of each loader.
    """

    def __init__(self, batch_size: int = 32, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        """Split the data, always the same way."""
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32) / 16
        data = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.val = random_split(data, [1437, 360], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of the training images."""
        return DataLoader(self.train, self.hparams.batch_size, shuffle=True, num_workers=self.hparams.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Batches of the validation images."""
        return DataLoader(self.val, 360, num_workers=self.hparams.num_workers)
