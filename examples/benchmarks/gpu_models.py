"""The models that are trained on a GPU: a perceptron, a residual network, and a transformer, all of random weights and data."""

import itertools
from dataclasses import dataclass

import torch
from cost_models import Block, Classifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        tokens: How many different tokens there are.
        length: Tokens of a sample.
        width: Numbers of a token's vector.
        layers: How many layers there are.
        heads: Heads of a layer's attention.
    """

    tokens: int = 32_000
    length: int = 256
    width: int = 1024
    layers: int = 12
    heads: int = 16


class Transformer(nn.Module):
    """Reads tokens and tells their class.

    Args:
        config: Its sizes.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.tokens, config.width)
        self.places = nn.Parameter(torch.zeros(config.length, config.width))
        shape = {"dim_feedforward": 4 * config.width, "dropout": 0.0, "batch_first": True, "norm_first": True}
        layers = [nn.TransformerEncoderLayer(config.width, config.heads, **shape) for _ in range(config.layers)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.LayerNorm(config.width), nn.Linear(config.width, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(batch, 2)``."""
        return self.head(self.layers(self.tokens(tokens) + self.places).mean(dim=1))


@dataclass(frozen=True)
class Model:
    """A model with its data.

    Attributes:
        title: Its name in the tables.
        net: The network.
        data: Inputs and labels of a batch.
    """

    title: str
    net: nn.Module
    data: tuple[Tensor, Tensor]

    def dimension(self) -> int:
        """``d``, the number of parameters."""
        return sum(parameter.numel() for parameter in self.net.parameters())

    def module(self, compiled: str | None = None) -> Classifier:
        """A module that trains the network.

        Args:
            compiled: The backend of ``torch.compile`` for the network; None to leave it as it is.

        Returns:
            The module.
        """
        return Classifier(self.net if compiled is None else torch.compile(self.net, backend=compiled)).train()

    def loader(self, batches: int) -> DataLoader[list[Tensor]]:
        """An epoch of as many batches as asked for, which share their numbers."""
        size = len(self.data[1])
        rows = TensorDataset(*(part.repeat(batches, *[1] * (part.dim() - 1)) for part in self.data))
        return DataLoader(rows, size)


def perceptron(batch: int, width: int) -> Model:
    """A perceptron of two hidden layers, on 28 x 28 images."""
    net = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    return Model("MLP", net, (torch.rand(batch, 784), torch.randint(10, (batch,))))


def residual(batch: int, size: int, widths: tuple[int, ...]) -> Model:
    """A residual network with BatchNorm; each new width halves the image."""
    stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
    blocks = [Block(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
    net = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return Model("ResNet", net, (torch.randn(batch, 3, size, size), torch.randint(10, (batch,))))


def transformer(batch: int, config: TransformerConfig) -> Model:
    """A transformer of the given sizes."""
    tokens = torch.randint(config.tokens, (batch, config.length))
    return Model("Transformer", Transformer(config), (tokens, torch.randint(2, (batch,))))


def models(tiny: bool) -> list[Model]:
    """The three models, or tiny ones of the same kinds."""
    torch.manual_seed(0)
    if tiny:
        config = TransformerConfig(tokens=50, length=8, width=16, layers=1, heads=2)
        return [perceptron(8, 16), residual(4, 8, (4, 4, 8)), transformer(4, config)]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    return [perceptron(8192, 2048), residual(256, 64, widths), transformer(32, TransformerConfig())]
