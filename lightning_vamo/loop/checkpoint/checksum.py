"""A checksum of a checkpoint's state, to refuse damaged or edited states before they change anything."""

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(value: Any, start: int = 0) -> int:
    """The CRC-32 of a state's structure, numbers and texts.

    Args:
        value: Nested dicts, lists and tuples of tensors on the CPU and of plain values.
        start: The checksum of earlier values, to continue from.

    Returns:
        The checksum.
    """
    if isinstance(value, Tensor):
        header = f"{value.dtype} {tuple(value.shape)}"
        content: Any = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return zlib.crc32(content, zlib.crc32(header.encode(), start))
    start = zlib.crc32(type(value).__name__.encode(), start)
    if isinstance(value, Mapping):
        for key, item in value.items():
            start = checksum(item, zlib.crc32(repr(key).encode(), start))
        return start
    if isinstance(value, (list, tuple)):
        for item in value:
            start = checksum(item, start)
        return zlib.crc32(b"end", start)
    return zlib.crc32(repr(value).encode(), start)
