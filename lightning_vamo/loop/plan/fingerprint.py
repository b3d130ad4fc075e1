"""Fingerprints of batches, which tell whether a step gets the same batch that its row was measured on.

A dataset with random augmentation, or with changing data, gives another batch for the same indices.
"""

import functools
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.tensors import tensors_in

# About how many numbers of a tensor are read: little work, but enough that an augmentation changes some of them.
_SAMPLE = 1024


def fingerprint(batch: Any) -> int | None:
    """A checksum over shapes, types and an evenly spaced sample of the numbers of the tensors in a batch.

    Args:
        batch: The batch from the loader. Tensors that are on a device already are not read, since that would wait for the
            device.

    Returns:
        The checksum; None if the batch has no tensor to read.
    """
    checksum = None
    for tensor in tensors_in(batch):
        if tensor.device.type == "cpu" and tensor.layout is torch.strided and not (tensor.is_nested or tensor.is_quantized):
            checksum = zlib.crc32(_sample(tensor), zlib.crc32(_header(tensor.shape, tensor.dtype), checksum or 0))
    return checksum


@functools.lru_cache(256)
def _header(shape: torch.Size, dtype: torch.dtype) -> bytes:
    return f"{tuple(shape)} {dtype}".encode()


def _sample(tensor: Tensor) -> Any:
    """The bytes of some numbers; of the usual kinds of tensors through numpy, in a third of the time."""
    if type(tensor) is Tensor and tensor.dtype in _PLAIN and not (tensor.requires_grad or tensor.is_neg()):
        numbers = tensor.numpy().reshape(-1)
        return np.ascontiguousarray(numbers[:: max(1, len(numbers) // _SAMPLE)])
    flat = tensor.detach().as_subclass(Tensor).resolve_conj().resolve_neg().reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLE)].contiguous().view(torch.uint8).numpy()


_PLAIN = {torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool}


class BatchWatch:
    """Compares each training batch, before its transfer to the device, with the sweep's batch."""

    def __init__(self) -> None:
        self._looking = True
        self.looks = True
        """Whether batches are to be compared at all."""
        self.seen: int | None = None
        """Fingerprint of the last training batch."""
        self.differs = False
        """Whether the current batch differs from the batch that its row was measured on."""

    def watching(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Make a context in which training batches are watched.

        Args:
            trainer: The trainer.

        Returns:
            The context.
        """

        def see(batch: Any) -> None:
            if not self.looks:
                self.seen = None
            elif self._looking and trainer.training:
                self.seen = fingerprint(batch)

        return compat.seen_transfers(trainer, see)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """Make a context in which transferred batches are ignored."""
        self._looking = False
        try:
            yield
        finally:
            self._looking = True

    def check(self, expected: int | None) -> None:
        """Compare the current batch with the sweep's batch, and look at the next batch if there is something to compare with.

        Args:
            expected: The fingerprint of the sweep's batch; None if there is none, or if the batch had no fingerprint.
        """
        self.differs = None not in (expected, self.seen) and expected != self.seen
        self.looks = expected is not None
