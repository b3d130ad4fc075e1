"""Peak memory of training, each method in a process of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from cost_models import Classifier, Problem, UnavailableError
from cost_training import Method, silence, train
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
    if device.type == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UnavailableError("the peak of a process's memory is read from Linux's /proc")
    # Read by glibc as the process starts: let it give freed memory back at once, so that the peak is that of memory in use.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, load, method, device, threads, epochs).result()


def _measure(load: Callable[[], Problem], method: Method, device: torch.device, threads: int, epochs: int) -> Memory:
    silence()
    torch.set_num_threads(threads)
    problem = load()
    loader = problem.loader(STEPS)
    _train_something_small(device)
    before = _held(device)
    module = method.prepare(problem.module())
    _reset_peak(device)
    train(module, loader, method, device, epochs)
    return Memory(before, _peak(device), sum(parameter.nbytes for parameter in module.parameters()))


def _train_something_small(device: torch.device) -> None:
    """Let the process load what every run needs of the libraries, so that it is not taken for the training's."""
    method, data = Method(probes=1), TensorDataset(torch.rand(4, 2), torch.zeros(4, dtype=torch.long))
    train(method.prepare(Classifier(nn.Linear(2, 2))), DataLoader(data, 1), method, device)


def _held(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    """A size in bytes from Linux's account of this process; ``getrusage``'s peak may be that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
