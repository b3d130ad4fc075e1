"""What the benchmark of the automatic choice trains: small models on real data, and on data with noise in its labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.benchmarks.cost_models import idx
from examples.benchmarks.evidence.data import Batches, diamonds

OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr),
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
}


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained.

    Attributes:
        net: Makes a new network; its weights depend on the global seed.
        loss: From outputs and targets.
        train: Samples to train on, inputs first.
        val: Samples to validate on.
        optimizer: Which of ``OPTIMIZERS``.
        lr: Learning rate, constant.
        batch_size: Samples of a batch.
        epochs: Epochs of a run.
        l2: Half of this times the squared norm of the weights is added to the loss.
        least: The least training loss, if a gap to it is what is to be compared; else 0.
        points: Measurements per epoch.
    """

    net: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    train: TensorDataset
    val: TensorDataset
    optimizer: str
    lr: float
    batch_size: int
    epochs: int
    l2: float = 0.0
    least: float = 0.0
    points: int = 4

    def module(self) -> "Trained":
        """A new module."""
        return Trained(self)

    def loader(self) -> DataLoader[Any]:
        """Shuffled batches of the training data."""
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True, collate_fn=list)


class Trained(L.LightningModule):
    """Trains the network of a task.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.net = task.net()

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of some samples."""
        loss = self.task.loss(self.net(inputs), targets)
        if self.task.l2:
            loss = loss + self.task.l2 / 2 * sum(parameter.square().sum() for parameter in self.net.parameters())
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of a batch."""
        return self.loss(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The task's."""
        return OPTIMIZERS[self.task.optimizer](self.parameters(), self.task.lr)

    @torch.no_grad()
    def mean_loss(self, data: TensorDataset) -> float:
        """The loss over all samples, a few hundred at a time."""
        batches = zip(*(tensor.split(512) for tensor in data.tensors), strict=True)
        return float(sum(self.loss(*batch) * len(batch[0]) for batch in batches) / len(data))


def _standardised_mnist(folder: Path) -> tuple[Batches, Batches]:
    images = idx(folder / "t10k-images-idx3-ubyte.gz", header=16).view(-1, 784).float()
    images = (images - images.mean()) / images.std()
    labels = idx(folder / "t10k-labels-idx1-ubyte.gz", header=8).long()
    return Batches(images[:8192], labels[:8192]), Batches(images[8192:], labels[8192:])


def _zeros(inputs: int, outputs: int) -> nn.Module:
    net = nn.Linear(inputs, outputs)
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    return net


def _perceptron(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs.squeeze(-1), targets)


def softmax(data: Path) -> Task:
    """Softmax regression with a penalty on 8,192 images of MNIST, at a constant rate."""
    train, val = _standardised_mnist(data / "mnist")
    task = Task(lambda: _zeros(784, 10), nn.functional.cross_entropy, train, val, "sgd", 0.03, 16, 20, l2=1e-3)
    return Task(**{**vars(task), "least": least_loss(task)})


def label_noise(data: Path) -> Task:
    """Regression of a smooth function of two inputs with noise of standard deviation 0.3 in the labels, by Adam."""
    generator = torch.Generator().manual_seed(0)
    inputs = 2 * torch.rand(3072, 2, generator=generator) - 1
    targets = torch.sin(3 * inputs[:, 0]) * torch.cos(2 * inputs[:, 1]) + 0.3 * torch.randn(3072, generator=generator)
    train, val = Batches(inputs[:1024], targets[:1024]), Batches(inputs[1024:], targets[1024:])
    return Task(lambda: _perceptron(2, 64, 64, 1), _squared, train, val, "adam", 1e-3, 32, 100, points=1)


def digits(data: Path) -> Task:
    """The perceptron of ``examples/digits.py`` on scikit-learn's digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images, labels = torch.tensor(found.data).float() / 16, torch.tensor(found.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, val = (Batches(images[rows], labels[rows]) for rows in (order[:1437], order[1437:]))
    return Task(lambda: _perceptron(64, 32, 10), nn.functional.cross_entropy, train, val, "sgd", 0.3, 32, 20)


def mnist(lr: float) -> Callable[[Path], Task]:
    """The perceptron 784-128-10 on 8,192 images of MNIST, by SGD."""

    def task(data: Path) -> Task:
        train, val = _standardised_mnist(data / "mnist")
        return Task(lambda: _perceptron(784, 128, 10), nn.functional.cross_entropy, train, val, "sgd", lr, 64, 6, points=16)

    return task


def prices(optimizer: str, *, outliers: bool) -> Callable[[Path], Task]:
    """The prices of diamonds: 16,384 to train on, and 8,192 to validate on."""

    def task(data: Path) -> Task:
        both = diamonds(data / "diamonds", outliers=outliers)
        train, val = (Batches(*(t[rows] for t in both)) for rows in (slice(16384), slice(16384, 24576)))
        lr = {"adam": 1e-3, "momentum": 0.01}[optimizer]
        return Task(lambda: _perceptron(26, 64, 64, 1), _squared, train, val, optimizer, lr, 16, 6)

    return task


def least_loss(task: Task) -> float:
    """The least loss of a strongly convex task, by LBFGS in float64."""
    module = task.module().double()
    inputs, targets = task.train.tensors
    data = inputs.double(), targets
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module.loss(*data)
        loss.backward()
        return loss

    optimizer.step(closure)
    loss = float(closure())
    square = sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None)
    if not math.isfinite(loss) or square / (2 * task.l2) > 1e-5:
        raise RuntimeError(f"LBFGS has not converged: the loss may be {square / (2 * task.l2):.2g} above its least value.")
    return loss


TASKS: dict[str, Callable[[Path], Task]] = {
    "softmax regression": softmax,
    "label noise": label_noise,
    "digits": digits,
    "MNIST, lr 0.1": mnist(0.1),
    "MNIST, lr 0.03": mnist(0.03),
    "MNIST, lr 0.3": mnist(0.3),
    "diamonds, Adam": prices("adam", outliers=False),
    "diamonds, momentum": prices("momentum", outliers=False),
    "diamonds with outliers, Adam": prices("adam", outliers=True),
    "diamonds with outliers, momentum": prices("momentum", outliers=True),
}
