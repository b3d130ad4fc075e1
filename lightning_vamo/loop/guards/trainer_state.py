"""Put the Trainer, the module and the data module back after a fit that ends before its first step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.nn.parameter import is_lazy

from lightning_vamo.loop import compat
from lightning_vamo.loop.compat.random import generators
from lightning_vamo.loop.guards.module_state import ModuleState


@contextmanager
def as_found(trainer: Trainer, module: LightningModule, datamodule: LightningDataModule | None) -> Iterator[None]:
    """Make a context that puts back the state that a fit within the context changes, even if the fit fails.

    Put back are the attributes of the Trainer and of its parts; the module's class, weights, gradients, buffers, attributes and
    modes; the data module's attributes; the global random states; and the handler of interrupts. Changes inside other objects,
    such as a dataset that counts its reads, are not put back.

    Args:
        trainer: The trainer.
        module: The module.
        datamodule: The data module, if there is one.
    """
    owners = [*compat.parts(trainer), *module.modules(), *([datamodule] if datamodule else [])]
    attributes = [(owner, dict(vars(owner))) for owner in owners]
    cls, grad_enabled = type(module), torch.is_grad_enabled()
    device = torch.device("cpu") if compat.fits_in_other_processes(trainer) else trainer.strategy.root_device
    random, interrupt = compat.rng_states(device), signal.getsignal(signal.SIGINT)
    weights, state = _Weights(module), ModuleState(module, list(module.parameters()))
    try:
        yield
    finally:
        module.__class__ = cls
        for owner, before in attributes:
            vars(owner).clear()
            vars(owner).update(before)
        weights.restore()
        state.restore()
        torch.set_grad_enabled(grad_enabled)
        compat.set_rng_states(random)
        if signal.getsignal(signal.SIGINT) is not interrupt:  # after an interrupt, Lightning ignores further interrupts
            signal.signal(signal.SIGINT, interrupt)


class _Weights:
    """A module's parameters: their numbers, storages and gradients.

    A fit may move parameters to another device or type, so the original tensors are kept, as well as copies.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = [parameter for parameter in module.parameters() if not is_lazy(parameter)]
        self._held = [(parameter, parameter.data, parameter.data.clone(), parameter.grad) for parameter in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, tensor, numbers, gradient in self._held:
            parameter.grad = None
            tensor.copy_(numbers)
            parameter.data = tensor
            parameter.grad = gradient


@contextmanager
def generators_as_found(trainer: Trainer) -> Iterator[None]:
    """Make a context that puts back the random generators of the training loaders that the Trainer sets up within it.

    Args:
        trainer: The trainer.
    """
    process = trainer.strategy.process_dataloader
    states: dict[int, tuple[torch.Generator, torch.Tensor]] = {}

    def process_dataloader(loader: object) -> object:
        for generator in generators([loader]):
            states.setdefault(id(generator), (generator, generator.get_state()))
        return process(loader)

    try:
        with compat.replaced(trainer.strategy, "process_dataloader", process_dataloader):
            yield
    finally:
        for generator, state in states.values():
            generator.set_state(state)
