"""A linear model and its data, scikit-learn's patients with diabetes: nothing here knows of VAMO.

Ten measurements of each of 442 patients explain half of how far the disease has come a year later. So gradients of small
batches are noisy, and at a constant learning rate plain SGD stays above the least loss.
"""

import lightning as L
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Progression(L.LightningModule):
    """A linear model of the progression of the disease, trained by SGD.

    Args:
        lr: Learning rate, constant.
    """

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(10, 1)

    def loss(self, batch: list[Tensor]) -> Tensor:
        """The mean squared error of a batch."""
        measurements, progression = batch
        return nn.functional.mse_loss(self.net(measurements).squeeze(-1), progression)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the loss over all samples, which training minimises."""
        self.log("full_loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Patients(L.LightningDataModule):
    """Measurements, shape ``(442, 10)``, and progression, shape ``(442,)``, all with mean 0 and variance 1.

    Args:
        batch_size: Patients per batch.
    """

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        measurements, progression = (torch.tensor(values).float() for values in load_diabetes(return_X_y=True))
        self.patients = TensorDataset(*((values - values.mean(0)) / values.std(0) for values in (measurements, progression)))

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(self.patients, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """The same patients in one batch."""
        return DataLoader(self.patients, len(self.patients))

    def least_loss(self) -> float:
        """The least loss that a linear model has on all patients."""
        measurements, progression = self.patients.tensors
        inputs = torch.cat((measurements, torch.ones(len(measurements), 1)), dim=1)
        weights = torch.linalg.lstsq(inputs, progression[:, None]).solution
        return float((inputs @ weights - progression[:, None]).square().mean())
