"""The tensors of a batch, whatever containers it is made of."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_vamo.core.sharding import local


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch, in a fixed order.

    Args:
        batch: Tensors in lists, tuples, mappings (the encodings of tokenizers among them) and dataclasses, at any depth.

    Yields:
        Each tensor; what is in objects of other kinds is not found.
    """
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors_in(getattr(batch, field.name, None))


def fresh_copy(batch: Any) -> Any:
    """A deep copy of a batch; plain tensors, most often all there is to it, are cloned, which takes a quarter of the time.

    Args:
        batch: Anything.

    Returns:
        A copy that shares nothing with it.
    """
    plain = (tensor for tensor in tensors_in(batch) if type(tensor) is Tensor and not tensor.requires_grad)
    return copy.deepcopy(batch, {id(tensor): tensor.clone() for tensor in plain})


def size_in_bytes(tensors: Iterator[Tensor]) -> int:
    """Memory that tensors take in this process.

    Args:
        tensors: Any tensors.

    Returns:
        Bytes; 0 if there are none.
    """
    return sum(held.numel() * held.element_size() for held in map(local, tensors))
