"""Leave no trace: put back what a forward pass through the user's code changed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.loop import compat
from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.silence import silent
from lightning_vamo.loop.guards.tensors import FrozenCopy


@contextmanager
def no_trace(
    trainer: Trainer, module: LightningModule, probed: Sequence[Tensor], last: Mapping[int, FrozenCopy] | None = None
) -> Iterator[ModuleState]:
    """Run forward passes of the module's training step so that nothing but their return values remains.

    Args:
        trainer: The trainer, whose loggers are set aside.
        module: The module.
        probed: The parameters that the caller perturbs, and restores itself.
        last: See :class:`ModuleState`.

    Yields:
        The module's state, for putting parts of it back between two forward passes.
    """
    random, should_stop = compat.rng_states(module.device), trainer.should_stop
    try:
        with silent(trainer, module), torch.no_grad():
            state = ModuleState(module, probed, last)
            try:
                yield state
            finally:
                state.restore()
    finally:
        trainer.should_stop = should_stop
        compat.set_rng_states(random)
