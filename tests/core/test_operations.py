"""What a step adds, counted in torch's operations: counts are exact. On a CPU, small numbers are worked on in NumPy."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.directions import GradientSubspaceDirections
from tests.support.problems import seeded

# They make another view of the same memory.
VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "narrow",
    "slice",
    "select",
    "split",
    "split_with_sizes",
    "unsqueeze",
    "squeeze",
    "expand",
    "detach",
    "as_strided",
    "alias",
    "unbind",
    "permute",
    "diagonal",
    "lift_fresh",
}


class Counting(TorchDispatchMode):
    """Names of the operations that are not views."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in VIEWS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def transformer(layers=6, width=16):
    """Shapes of a small language model: an embedding, and per layer four square matrices, two oblong ones, and vectors."""
    shapes = [(300, width), (width,), (width,)]
    for _ in range(layers):
        shapes += [(width, width), (width,)] * 4 + [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
        shapes += [(width,)] * 4
    return shapes


def residual(blocks=8):
    """Shapes of a residual network: convolutions, and the vectors of their normalisation."""
    return [shape for _ in range(2 * blocks) for shape in ((16, 16, 3, 3), (16,), (16,))] + [(10, 16), (10,)]


MODELS = {
    "softmax regression": [(10, 784), (10,)],
    "perceptron": [(128, 784), (128,), (64, 128), (64,), (10, 64), (10,)],
    "residual network": residual(),
    "transformer": transformer(),
}


def step_of(shapes, count=4, device="cpu"):
    """A function that does what a step does after its backward pass: learn, refresh and correct, with carried rows."""
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    gradients = [[torch.randn(shape, device=device) for shape in shapes] for _ in range(8)]
    learner = GradientSubspaceDirections().learner(parameters, count, seeded(0))
    for gradient in gradients[:6]:
        learner.observe(gradient)
    directions = learner.current or learner.leading(count)
    table = CarriedRows(torch.ones(4, device=device), count, deltas=torch.randn(4, count, device=device))
    correction = Correction(parameters, directions, table, coefficient=Regression(count))

    def step(number):
        for parameter, gradient in zip(parameters, gradients[number], strict=True):
            parameter.grad = gradient
        learner.observe(gradients[number])
        return correction.apply([number % 4], slopes=learner.slopes)

    return step


@pytest.mark.parametrize(
    ("model", "most"), [("softmax regression", 6), ("perceptron", 14), ("residual network", 70), ("transformer", 150)]
)
@torch.no_grad()
def test_a_step_adds_few_operations(model, most):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        step = step_of(MODELS[model])
    step(6)
    with Counting() as counted:
        assert step(7) is not None
    assert len(counted.names) <= most, sorted(counted.names)
