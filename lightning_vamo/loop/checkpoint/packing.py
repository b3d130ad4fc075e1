"""Convert a sampler's batches into plain types and tensors for a checkpoint, and back."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.errors import UnsupportedError


def packed(batches: Iterable[Any]) -> dict[str, Any]:
    """Convert a sampler's batches for a checkpoint: lists of indices into tensors, other batches into plain types.

    Args:
        batches: The batches that the sampler gave.

    Returns:
        A state that :func:`unpacked` reads.

    Raises:
        UnsupportedError: If a batch holds anything else.
    """
    batches = list(batches)
    try:
        flat = [[operator.index(index) for index in _list(batch)] for batch in batches]
    except TypeError:
        return {"batches": [_plain(batch) for batch in batches]}
    return {
        "indices": torch.tensor([index for batch in flat for index in batch], dtype=torch.int64, device="cpu"),
        "lengths": torch.tensor([len(batch) for batch in flat], dtype=torch.int64, device="cpu"),
    }


def unpacked(state: dict[str, Any]) -> list[Any]:
    """The batches from a state of :func:`packed`."""
    if "batches" in state:
        return list(state["batches"])
    return [part.tolist() for part in state["indices"].split(state["lengths"].tolist())]


def _list(batch: Any) -> list[Any]:
    if type(batch) is not list:
        raise TypeError
    return batch


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else _refuse(value)
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    return operator.index(value) if hasattr(value, "__index__") else _refuse(value)


def _refuse(value: Any) -> Any:
    raise UnsupportedError(
        f"The training sampler yields batches with a {type(value).__name__}, which a checkpoint cannot hold: make the sampler"
        " yield numbers, strings, and lists, tuples or dicts of numbers and strings."
    )
