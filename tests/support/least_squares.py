"""Least squares through Lightning, to compare with an independent first-order SVRG."""

import itertools

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import trainer
from tests.support.watched import Watched


class LeastSquares(L.LightningModule):
    def __init__(self, dimension, rate):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(dimension - 2)), nn.Parameter(torch.ones(2))])
        self.rate = rate
        self.plan = []

    def training_step(self, batch, batch_idx):
        inputs, targets, indices = batch
        if batch_idx == 0 and torch.is_grad_enabled():
            self.plan.append([])
        if torch.is_grad_enabled():
            self.plan[-1].append(indices.tolist())
        return (inputs @ torch.cat(list(self.weights)) - targets).square().mean() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class VAMOLeastSquares(VAMOMixin, LeastSquares):
    pass


class Trajectory(L.Callback):
    def __init__(self):
        self.points = []

    def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
        self.points.append(torch.cat(list(module.weights)).detach().double().numpy().copy())


def problem(samples=41, dimension=9):
    generator = np.random.default_rng(0)
    a = generator.standard_normal((samples, dimension))
    return a, a @ generator.standard_normal(dimension) + generator.standard_normal(samples)


def train(callback, epochs=5, accumulated=1, **loader):
    a, b = problem()
    L.seed_everything(1, verbose=False)
    module, trajectory = VAMOLeastSquares(a.shape[1], 0.05), Trajectory()
    data = TensorDataset(torch.tensor(a).float(), torch.tensor(b).float(), torch.arange(len(a)))
    loader = DataLoader(data, **{"batch_size": 6, "shuffle": True, **loader})
    options = {"max_epochs": epochs, "accumulate_grad_batches": accumulated}
    trainer(callbacks=[callback, trajectory], **options).fit(module, loader)
    start = np.concatenate([np.zeros(a.shape[1] - 2), np.ones(2)])
    return np.stack(trajectory.points), start, module.plan


RATE = 0.05


def every_direction(**arguments):
    family = arguments.pop("directions", None) or OrthonormalDirections()
    return Watched(probes=9, directions=family, difference="central", seed=0, **arguments)


def samples():
    a, b = problem()
    return TensorDataset(torch.tensor(a).float(), torch.tensor(b).float(), torch.arange(len(a)))


def groups(plan, count):
    """The batches of a run, as many to a group as steps to a snapshot."""
    flat = list(itertools.chain.from_iterable(plan))
    return [flat[start : start + count] for start in range(0, len(flat), count)]
