"""Check, before a table of gradients is allocated, that the table fits in memory."""

from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.sharding import local
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop.sweep.agree import least


def available(device: torch.device) -> int | None:
    """The free memory of a device, in bytes.

    Args:
        device: The device.

    Returns:
        The number of bytes; None if it is not known.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # The allocator keeps the memory of freed tensors, and gives it to new tensors.
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [value for value in (_of_machine(), _of_group()) if value is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    kilobytes = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return next((1024 * value for value in kilobytes), None)


def _of_group() -> int | None:
    """The memory that a container's limit leaves, by version 2 of Linux control groups, in bytes."""
    try:
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        return int(limit) - int(used)
    except (OSError, ValueError):  # there is no limit, or the limit is "max"
        return None


def check_memory(
    trainer: Trainer, size: int, count: int, parameters: Sequence[Tensor], device: torch.device | None = None
) -> None:
    """Refuse a table that does not fit in memory; all ranks refuse if one rank does.

    Args:
        trainer: The trainer; every rank has to call this function.
        size: Bytes of the table in one process.
        count: How many rows the table has.
        parameters: The parameters whose gradients a row holds.
        device: Device of the table; None for the device of the parameters.

    Raises:
        UnsupportedError: If the table does not fit in memory.
    """
    place = device or local(parameters[0]).device
    free = available(place)
    # The processes of a machine share its memory, and each has a table.
    needed = size * (trainer.num_devices if place.type == "cpu" else 1)
    if least(trainer, int(free is None or needed <= free)):
        return
    dimension = sum(parameter.numel() for parameter in parameters)
    have = "another rank has less memory" if free is None or needed <= free else f"{place} has {_gigabytes(free)} free"
    raise UnsupportedError(
        f"A table of {count:,} gradients of {dimension:,} numbers takes {_gigabytes(needed)}, but {have}: set"
        " table_device='cpu' or table_dtype='bfloat16', use larger batches, train fewer parameters, or set"
        " gradients='recompute', which keeps no table."
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
