"""The peak of a process's memory: its resident memory on a CPU, and what PyTorch has allocated on a GPU."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def held(device: torch.device) -> int:
    """Bytes that are held now."""
    return torch.cuda.memory_allocated() if device.type == "cuda" else _status("VmRSS")


def peak(device: torch.device) -> int:
    """Bytes that were held at most since the last :func:`reset_peak`."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Forget the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def can_be_read(device: torch.device) -> bool:
    """Whether the operating system tells."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def alone(function: Callable[..., Any], *arguments: Any, exact: bool = True) -> Any:
    """Call a function in a process of its own.

    Args:
        function: A function of a module.
        *arguments: Its arguments.
        exact: Whether freed memory goes back at once, so that the peak is that of memory in use; this makes allocation slow.

    Returns:
        What the function returns.
    """
    with _giving_back() if exact else nullcontext(), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def _giving_back() -> Iterator[None]:
    name = "MALLOC_MMAP_THRESHOLD_"  # read by glibc as a process starts
    before = os.environ.get(name)
    os.environ[name] = "65536"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _status(name: str) -> int:
    """A size in bytes from Linux's account of this process; ``getrusage``'s peak may be that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
