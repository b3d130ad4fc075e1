"""The global random generators, and the generators of training loaders."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states


def rng_states(device: torch.device) -> dict[str, Any]:
    """The states of the global generators of torch, numpy and Python, and of CUDA if the model is on a CUDA device."""
    return _collect_rng_states(include_cuda=device.type == "cuda")


def set_rng_states(states: dict[str, Any]) -> None:
    """Set the global generators to a state of :func:`rng_states`; the public ``isolate_rng`` can restore only once."""
    _set_rng_states(states)


def generators(loaders: Iterable[Any]) -> list[torch.Generator]:
    """The random generators of the loaders and of their samplers, each generator once."""
    found: dict[int, torch.Generator] = {}
    for loader in loaders:
        for owner in (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                found[id(generator)] = generator
    return list(found.values())
