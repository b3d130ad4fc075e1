"""The data of the experiments: drawn from a seed of their own, or read from a folder."""

import csv
import gzip
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from examples.benchmarks.cost_models import idx

Part = list[tuple[Any, Tensor]]
"""Inputs of a network with their targets, a few large batches of them."""


class Batches(TensorDataset):
    """Samples that a loader takes a batch at a time: what is measured is training, not the loading of single rows."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """The samples of a batch, stacked."""
        return [tensor[indices] for tensor in self.tensors]


class Samples(L.LightningDataModule):
    """Samples in shuffled batches, and parts to measure on.

    Args:
        inputs: All samples, those to train on first.
        targets: Classes or numbers.
        train_size: How many to train on; the rest validate.
        batch_size: Samples per batch.

    Attributes:
        parts: What is measured on: the training data, at most 2,048 samples unless ``whole``, and the rest.
    """

    whole = False

    def __init__(self, inputs: Tensor, targets: Tensor, train_size: int, batch_size: int) -> None:
        super().__init__()
        self.train = inputs[:train_size], targets[:train_size]
        self.batch_size = batch_size
        seen = train_size if self.whole else min(train_size, 2048)
        self.parts: dict[str, Part] = {"train": [(inputs[:seen], targets[:seen])]}
        if len(inputs) > train_size:
            self.parts["val"] = [(inputs[train_size:], targets[train_size:])]

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches, all of one size."""
        return DataLoader(Batches(*self.train), self.batch_size, shuffle=True, drop_last=True, collate_fn=list)


class LeastSquares(Samples):
    """Labels 0 and 1, drawn with probability ``sigmoid(a x)``, to fit a sigmoid to: not convex, and not interpolated.

    Args:
        samples: How many.
        dimension: Of ``a`` and ``x``.
        batch_size: Samples per batch.
    """

    whole = True

    def __init__(self, samples: int = 1000, dimension: int = 100, batch_size: int = 50) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(samples, dimension, generator=generator)
        x = torch.randn(dimension, generator=generator) / dimension**0.5
        labels = torch.rand(samples, generator=generator) < (inputs @ x).sigmoid()
        super().__init__(inputs, labels.float(), samples, batch_size)


class NoisyFunction(Samples):
    """A smooth function of the unit square, plus noise that no network should learn; validated without the noise.

    Args:
        samples: How many to train on.
        noise: Standard deviation of the noise.
        batch_size: Samples per batch.
        frequency: How many times as fast the function oscillates; the larger, the longer a network takes to learn the function.
    """

    def __init__(self, samples: int = 1024, noise: float = 0.3, batch_size: int = 32, frequency: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(samples + 2048, 2, generator=generator) * 2 - 1
        targets = (3 * frequency * inputs[:, 0]).sin() * (2 * frequency * inputs[:, 1]).cos() + inputs[:, 0] * inputs[:, 1]
        targets[:samples] += noise * torch.randn(samples, generator=generator)
        super().__init__(inputs, targets, samples, batch_size)


class Digits(Samples):
    """Scikit-learn's digits, pixels from 0 to 1.

    Args:
        train_size: How many digits to train on.
        batch_size: Digits per batch.
    """

    def __init__(self, train_size: int = 1408, batch_size: int = 32) -> None:
        from sklearn.datasets import load_digits  # of the examples' requirements, not of the evidence's

        found = load_digits()
        order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
        super().__init__(
            torch.tensor(found.data).float()[order] / 16, torch.tensor(found.target)[order], train_size, batch_size
        )


class Mnist(Samples):
    """MNIST's 10,000 test images, standardised.

    Args:
        folder: Folder of the gzipped IDX files.
        train_size: How many images to train on.
        batch_size: Images per batch.
        whole: Whether the loss is measured on all images that are trained on.
    """

    def __init__(self, folder: str, train_size: int = 8192, batch_size: int = 64, whole: bool = False) -> None:
        self.whole = whole
        images = idx(Path(folder) / "t10k-images-idx3-ubyte.gz", header=16).view(-1, 784).float()
        labels = idx(Path(folder) / "t10k-labels-idx1-ubyte.gz", header=8).long()
        kept = torch.cat([torch.arange(train_size), torch.arange(8192, len(images))])
        super().__init__(((images - images.mean()) / images.std())[kept], labels[kept], train_size, batch_size)


class Diamonds(Samples):
    """Standardised log prices of diamonds, with or without the rows whose sizes are impossible.

    Args:
        folder: Folder of ggplot2's ``diamonds.csv.gz``.
        outliers: Whether rows with impossible sizes are kept.
        train_size: How many diamonds to train on.
        batch_size: Diamonds per batch.
    """

    def __init__(self, folder: str, outliers: bool = False, train_size: int = 8192, batch_size: int = 64) -> None:
        features, prices = diamonds(Path(folder), outliers=outliers)
        count = train_size + 4096
        super().__init__(features[:count], prices[:count], train_size, batch_size)


def diamonds(folder: Path, *, outliers: bool) -> tuple[Tensor, Tensor]:
    """Diamonds in an order that is always the same.

    Args:
        folder: Where ``diamonds.csv.gz`` is.
        outliers: Whether rows with impossible sizes are kept.

    Returns:
        Features, shape ``(diamonds, 26)``, and standardised log prices, shape ``(diamonds,)``.
    """
    with gzip.open(folder / "diamonds.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    numbers = {name: columns[name].astype(float) for name in ("carat", "depth", "table", "x", "y", "z")}
    kinds = [columns[name][:, None] == np.unique(columns[name]) for name in ("cut", "color", "clarity")]
    price = np.log(columns["price"].astype(float))
    x, y, z = (numbers[name] for name in "xyz")
    keep = np.ones(len(rows), bool) if outliers else (x > 2) & (y > 2) & (y < 12) & (z > 1) & (z < 8)
    scaled = [((values - values.mean()) / values.std())[:, None] for values in numbers.values()]
    features = np.hstack([*scaled, *kinds])[keep]
    target = ((price - price.mean()) / price.std())[keep]
    order = np.random.default_rng(0).permutation(len(target))
    return torch.tensor(features[order]).float(), torch.tensor(target[order]).float()
