"""Peak memory of training, each method in a process of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from cost_models import Classifier, Problem, UnavailableError
from cost_training import Method, silence, train
from peak import alone, can_be_read, held, peak, reset_peak
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS = 4
"""Training steps of an epoch."""


@dataclass(frozen=True)
class Memory:
    """Bytes that a training run held at its peak.

    Attributes:
        before: What the process held before the module was built: the interpreter, the libraries, and the data. 0 on a GPU.
        peak: What it held at most while it trained.
        parameters: What the module's parameters take.
    """

    before: int
    peak: int
    parameters: int

    @property
    def training(self) -> int:
        """What the training took: weights, gradients, activations, directions."""
        return self.peak - self.before


def peak_memory(load: Callable[[], Problem], method: Method, device: torch.device, threads: int, epochs: int) -> Memory:
    """Train a little in a new process, which starts with a peak of zero, and read its peak.

    Args:
        load: Loads the problem.
        method: What to train with.
        device: Where. On a CPU the peak is the process's resident memory, on a GPU what PyTorch has allocated there.
        threads: Threads that PyTorch computes with.
        epochs: How long to train, in epochs of ``STEPS`` steps.

    Returns:
        The figures.

    Raises:
        UnavailableError: If the operating system does not tell.
    """
    if not can_be_read(device):
        raise UnavailableError("the peak of a process's memory is read from Linux's /proc")
    figures: Memory = alone(_measure, load, method, device, threads, epochs)
    return figures


def _measure(load: Callable[[], Problem], method: Method, device: torch.device, threads: int, epochs: int) -> Memory:
    silence()
    torch.set_num_threads(threads)
    problem = load()
    loader = problem.loader(STEPS)
    _train_something_small(device)
    before = held(device)
    module = method.prepare(problem.module())
    reset_peak(device)
    train(module, loader, method, device, epochs)
    return Memory(before, peak(device), sum(parameter.nbytes for parameter in module.parameters()))


def _train_something_small(device: torch.device) -> None:
    """Let the process load what every run needs of the libraries, so that it is not taken for the training's."""
    method, data = Method(probes=1), TensorDataset(torch.rand(4, 2), torch.zeros(4, dtype=torch.long))
    train(method.prepare(Classifier(nn.Linear(2, 2))), DataLoader(data, 1), method, device)
