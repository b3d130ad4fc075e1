"""Training steps that do more than return a loss: whatever evaluating a batch twice could disturb."""

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_vamo import VAMOMixin
from tests.support.modules import Perceptron


class Taken(VAMOMixin, Perceptron):
    """Takes its batch apart, keeps a teacher up to date, and a running mean, and counts."""

    def __init__(self, write="version", **sgd):
        super().__init__(**sgd)
        self.write = write
        self.teacher = nn.Linear(6, 3).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(6))
        self.calls = 0

    def training_step(self, batch, batch_idx):
        inputs = batch.pop(0)
        inputs *= 2
        self.calls += 1
        self.mean += inputs.mean(dim=0)
        weight = self.teacher.weight.data if self.write == "data" else self.teacher.weight
        with torch.no_grad():
            weight.mul_(0.9).add_(self.net[0].weight[:3], alpha=0.1)
        return cross_entropy(self.net(inputs) + self.teacher(inputs), batch[0])


class Normed(VAMOMixin, L.LightningModule):
    """BatchNorm that learns statistics, BatchNorm that is frozen, and Dropout."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.frozen = nn.BatchNorm1d(6)
        self.frozen.requires_grad_(False)

    def training_step(self, batch, batch_idx):
        self.frozen.eval()
        loss = cross_entropy(self.net(self.frozen(batch[0])), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr)
