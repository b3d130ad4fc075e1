"""Lightning modules and Trainers that the integration tests share."""

import lightning as L
import torch
import torchmetrics
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_vamo import VAMOMixin


class MemoryLogger(Logger):
    """Keeps what is logged, without the package's own figures."""

    def __init__(self, save_dir=None):
        super().__init__()
        self.rows = []
        self._save_dir = save_dir

    name = "memory"
    version = 0

    @property
    def save_dir(self):
        return self._save_dir

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        own = {name: value for name, value in metrics.items() if not name.startswith("vamo/")}
        if own.keys() - {"epoch"}:
            self.rows.append((step, own))


class Perceptron(L.LightningModule):
    """Classifies with one hidden layer, and without BatchNorm, whose statistics are of a rank's own batch."""

    def __init__(self, inputs=6, hidden=5, classes=3, activation=nn.Tanh, **sgd):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, classes))
        self.sgd = {"lr": 0.1, **sgd}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.sgd)


class Everything(L.LightningModule):
    """BatchNorm, Dropout, metrics, lists and counters: whatever a sweep could disturb."""

    def __init__(self, optimizer="sgd", scheduler=None, lr=0.05, features=6):
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(features, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 3))
        metrics = torchmetrics.classification
        self.accuracy = metrics.MulticlassAccuracy(3, average="micro", validate_args=False)  # which would take as long again
        self.auroc = metrics.MulticlassAUROC(3, validate_args=False)  # keeps lists of predictions
        self.val_accuracy = metrics.MulticlassAccuracy(3, average="micro", validate_args=False)
        self.seen = []
        self.calls = 0

    def training_step(self, batch, batch_idx):
        inputs, labels = batch[:2]
        logits = self.net(inputs)
        loss = nn.functional.cross_entropy(logits, labels)
        self.calls += 1
        self.seen.append(loss.item())
        self.accuracy(logits, labels)
        self.auroc.update(logits.float(), labels)
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"accuracy": self.accuracy, "auroc": self.auroc}, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self):
        self.log("mean_seen", sum(self.seen) / len(self.seen))
        self.seen.clear()

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch[:2]
        logits = self.net(inputs)
        self.val_accuracy(logits, labels)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels))
        self.log("val_accuracy", self.val_accuracy)

    def configure_optimizers(self):
        lr = self.lr
        optimizer = {
            "sgd": lambda: torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9),
            "adamw": lambda: torch.optim.AdamW(self.parameters(), lr=lr),
            "plain": lambda: torch.optim.SGD(self.parameters(), lr=lr),
        }[self.hparams.optimizer]()
        schedulers = torch.optim.lr_scheduler
        config = {
            None: lambda: None,
            "step": lambda: {"scheduler": schedulers.ExponentialLR(optimizer, 0.9), "interval": "step", "frequency": 2},
            "epoch": lambda: schedulers.StepLR(optimizer, 1, 0.5),
            "onecycle": lambda: {
                "scheduler": schedulers.OneCycleLR(optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches),
                "interval": "step",
            },
            "plateau": lambda: {"scheduler": schedulers.ReduceLROnPlateau(optimizer, patience=0), "monitor": "val_loss"},
            "plateau-step": lambda: {
                "scheduler": schedulers.ReduceLROnPlateau(optimizer, patience=0),
                "monitor": "loss",
                "interval": "step",
                "frequency": 2,
            },
        }[self.hparams.scheduler]()
        return optimizer if config is None else {"optimizer": optimizer, "lr_scheduler": config}


class VAMOEverything(VAMOMixin, Everything):
    pass


class Indexed(Dataset):
    """Items that tell their index, so that a test sees which batch it got."""

    def __init__(self, length, start=0):
        self.length = length
        self.start = start

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([float(self.start + index)])


class Recorder(L.LightningModule):
    """Remembers the content of every batch that it trains on; its loss is a function of the content."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def contents(self, batch):
        if isinstance(batch, torch.Tensor):
            return batch.flatten()
        parts = batch.values() if isinstance(batch, dict) else batch
        return torch.cat([self.contents(part) for part in parts if part is not None])

    def training_step(self, batch, batch_idx):
        return (self.weight * self.contents(batch).sum()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class VAMORecorder(VAMOMixin, Recorder):
    pass


def classification_data(samples=90, features=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    labels = torch.randint(0, 3, (samples,), generator=generator)
    return TensorDataset(inputs, labels)


def loaders(**options):
    data = classification_data()
    options = {"batch_size": 8, "shuffle": True, **options}
    return DataLoader(data, **options), DataLoader(classification_data(30, seed=1), batch_size=10)


class Data(L.LightningDataModule):
    batch_size = 8

    def train_dataloader(self):
        return loaders(batch_size=self.batch_size)[0]

    def val_dataloader(self):
        return loaders()[1]

    test_dataloader = predict_dataloader = val_dataloader


QUIET = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


def trainer(tmp_path=None, **options):
    options = {**QUIET, "logger": False, "enable_checkpointing": False, "max_epochs": 2, **options}
    return L.Trainer(default_root_dir=tmp_path, **options)
