"""Small problems that the tests share: least squares, logistic regression, linear softmax models, multilayer perceptrons."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.probes.difference import Difference, probe_differences, probe_losses
from lightning_vamo.core.probes.point import Point


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of its own."""
    return torch.Generator().manual_seed(seed)


class LinearProblem:
    """A mean over samples of a loss of `a_i . x`, where `x` is the concatenation of several parameters."""

    def __init__(self, samples: int, shapes: Sequence[Sequence[int]], seed: int = 0, dtype: torch.dtype = torch.float64):
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.dimension = sum(shape.numel() for shape in self.shapes)
        generator = seeded(seed)
        self.a = torch.randn(samples, self.dimension, generator=generator, dtype=torch.float64).to(dtype)
        self.solution = torch.randn(self.dimension, generator=generator, dtype=torch.float64).to(dtype)
        noise = torch.randn(samples, generator=generator, dtype=torch.float64).to(dtype)
        self.b = self.targets(self.a @ self.solution, noise)

    def targets(self, clean: Tensor, noise: Tensor) -> Tensor:
        raise NotImplementedError

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """The loss of each sample."""
        raise NotImplementedError

    def start(self, seed: int = 1, requires_grad: bool = False) -> list[Tensor]:
        """A random point."""
        flat = torch.randn(self.dimension, generator=seeded(seed), dtype=torch.float64).to(self.a.dtype)
        sizes = [shape.numel() for shape in self.shapes]
        parts = [part.clone().view(shape) for part, shape in zip(flat.split(sizes), self.shapes, strict=True)]
        return [part.requires_grad_(requires_grad) for part in parts]

    def loss(self, parameters: Sequence[Tensor], rows: Sequence[int] | slice = slice(None)) -> Tensor:
        """The mean loss over some samples, by default over all."""
        x = torch.cat([parameter.reshape(-1) for parameter in parameters])
        return self.values(self.a[rows] @ x, self.b[rows]).mean()

    def gradients(self, parameters: Sequence[Tensor], rows: Sequence[int] | slice = slice(None)) -> list[Tensor]:
        """The first-order gradient of the mean loss over some samples."""
        leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
        return list(torch.autograd.grad(self.loss(leaves, rows), leaves))


class LeastSquares(LinearProblem):
    """Half the mean squared residual."""

    def targets(self, clean: Tensor, noise: Tensor) -> Tensor:
        return clean + noise

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return (predictions - targets).square() / 2


class LogisticRegression(LinearProblem):
    """Mean logistic loss with labels of -1 and +1."""

    def targets(self, clean: Tensor, noise: Tensor) -> Tensor:
        return (clean + noise).sign()

    def values(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return softplus(-targets * predictions)


def batches_of(samples: int, size: int, seed: int) -> list[list[int]]:
    """A shuffled epoch of batches; the last one is smaller where `size` does not divide `samples`."""
    order = torch.randperm(samples, generator=seeded(seed)).tolist()
    return [order[start : start + size] for start in range(0, samples, size)]


def probe_table(
    problem: LinearProblem,
    parameters: Sequence[Tensor],
    batches: Sequence[Sequence[int]],
    directions: ProbeDirections,
    mu: float,
    difference: Difference,
) -> Tensor:
    """Shape (K, q): the probe differences of each batch at the parameters, which are restored."""

    def losses() -> Tensor:
        return torch.stack([problem.loss(parameters, rows) for rows in batches])

    with torch.no_grad(), Point(parameters) as snapshot:
        return probe_differences(probe_losses(losses, snapshot, directions, mu, difference), mu, difference)


def softmax_regression(dimension: int) -> nn.Linear:
    """A linear softmax model with exactly `dimension` parameters and the default initialisation."""
    classes = 2 if dimension < 100 else 10
    return _seeded_build(lambda: nn.Linear(dimension // classes - 1, classes))


def tanh_mlp(dimension: int) -> nn.Sequential:
    """A tanh multilayer perceptron with about `dimension` parameters and the default initialisation."""
    width = round((dimension / 2 + 4) ** 0.5) - 3  # 2 w^2 + 12 w + 10 parameters
    widths = [1, 2, 2] if dimension < 100 else [width, width, width, 10]
    return _seeded_build(lambda: _perceptron(widths))


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def classification_batch(model: nn.Module, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random inputs and labels that fit the first and the last linear layer of a model."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    generator = seeded(seed)
    inputs = torch.randn(size, linear[0].in_features, generator=generator)
    return inputs, torch.randint(linear[-1].out_features, (size,), generator=generator)


def classification_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """The cross entropy of a model on a batch, as a function of the parameters that the model holds."""
    inputs, labels = batch
    return lambda: cross_entropy(model(inputs), labels)


def _seeded_build(build: Callable[[], nn.Module]):
    with torch.random.fork_rng():
        torch.manual_seed(20250519)  # no other seed: the same stream would make weights that match the inputs
        return build()
