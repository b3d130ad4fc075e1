"""Run forward passes of the user's code, and put back everything that they change."""

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
    """Make a context for forward passes of ``training_step`` after which only their return values remain.

    Args:
        trainer: The trainer, whose loggers are set aside.
        module: The module.
        probed: The parameters that the caller perturbs and restores.
        last: See :class:`ModuleState`.

    Yields:
        The module's state, which the caller can put back between two forward passes.
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
