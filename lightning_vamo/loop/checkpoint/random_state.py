"""Convert random states into plain types and tensors for a checkpoint, and set them again."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule

from lightning_vamo.loop import compat
from lightning_vamo.loop.compat.random import generators


def random_state(module: LightningModule, loaders: Sequence[Any]) -> dict[str, Any]:
    """The states of the global generators and of the loaders' own generators, as plain types and tensors."""
    states = compat.rng_states(module.device)
    if "numpy" in states:
        name, keys, *rest = states["numpy"]
        states["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]
    return {"global": states, "loaders": [generator.get_state() for generator in generators(loaders)]}


def set_random_state(state: dict[str, Any], loaders: Sequence[Any]) -> None:
    """Set the random states that :func:`random_state` returned."""
    states = dict(state["global"])
    if "numpy" in states:
        name, keys, *rest = states["numpy"]
        states["numpy"] = (name, keys.numpy().astype("uint32"), *rest)
    compat.set_rng_states(states)
    for generator, saved in zip(generators(loaders), state["loaders"], strict=False):
        generator.set_state(saved)
