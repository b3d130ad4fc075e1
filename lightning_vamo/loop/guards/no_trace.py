"""Leave no trace: put back what a forward pass through the user's code changed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.loop.guards.module_state import ModuleState
from lightning_vamo.loop.guards.randomness import RandomState
from lightning_vamo.loop.guards.silence import silent


@contextmanager
def no_trace(
    trainer: Trainer, module: LightningModule, probed: Sequence[Tensor], last: ModuleState | None = None
) -> Iterator[ModuleState]:
    """Run forward passes of the module's training step so that nothing but their return values remains.

    Args:
        trainer: The trainer, whose loggers are set aside.
        module: The module.
        probed: The parameters that the caller perturbs, and restores itself.
        last: See :class:`ModuleState`.

    Yields:
        The module's state, to which it can be put back between two forward passes.
    """
    random = RandomState(module.device)
    try:
        with silent(trainer, module), torch.no_grad():
            state = ModuleState(module, probed, last, trainer)
            try:
                yield state
            finally:
                state.restore()
    finally:
        random.settle()
        random.set()
