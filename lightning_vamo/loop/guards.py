"""Leave no trace: what a forward pass through the user's ``training_step`` may change is put back.

The sweep runs the user's code many times between two training steps. What that code logs is dropped; buffers, metrics,
plain attributes, train/eval modes, ``requires_grad`` flags and random states are returned to what they were.
"""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn

from lightning_vamo.loop import compat

_CONTAINERS = (list, dict, set, deque)
# Bookkeeping that torch and Lightning keep on a module, not state of the user's code. `training` is the exception.
_INTERNAL = (nn.Module().__dict__.keys() | LightningModule().__dict__.keys()) - {"training"}


class ModuleState:
    """What a forward pass can change on a module, apart from the values of the parameters being probed.

    That is, for the module and every submodule, torchmetrics among them: buffers, the ``training`` flag, and plain attributes
    (numbers, tensors, and lists, dicts, sets and deques of them, at any depth); the values of other parameters, such as
    those of a teacher that the step updates; and every parameter's ``requires_grad`` flag. Objects of other kinds, such as
    a plain object that counts calls, are not known to the guard.

    Args:
        module: The module to remember.
        probed: The parameters that whoever perturbs them restores.
    """

    def __init__(self, module: nn.Module, probed: Sequence[Tensor] = ()) -> None:
        self._buffers = [(m, dict(m._buffers)) for m in module.modules() if m._buffers]
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        self._attributes = [(m, _plain(m)) for m in module.modules()]
        values = [value for _, attributes in self._attributes for value in attributes.values()]
        self._contents = [_Contents(value) for value in values if isinstance(value, _CONTAINERS)]
        # Copied back always: BatchNorm writes its running statistics without a trace on the tensors' version counters.
        held = [buffer for _, buffers in self._buffers for buffer in buffers.values() if buffer is not None]
        self._values = [(buffer, buffer.detach().clone()) for buffer in held]
        self._tensors = [_Value(value) for value in values if isinstance(value, Tensor)]
        self._tensors += [_Value(tensor) for contents in self._contents for tensor in contents.tensors()]
        # Off the device: a frozen backbone may fill it.
        ids = {id(parameter) for parameter in probed}
        self._others = [_Value(parameter, "cpu") for parameter in module.parameters() if id(parameter) not in ids]
        self._first = True

    def restore_tensors(self) -> None:
        """Put back whatever tensors were written to: cheap enough to do after every forward pass."""
        for module, buffers in self._buffers:
            if any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
                module._buffers.update(buffers)
        for buffer, value in self._values:
            buffer.detach().copy_(value)
        if self._first:
            # A step that leaves them alone once leaves them alone: their copies can go.
            self._others = [value for value in self._others if value.written()]
            self._first = False
        for written in (*self._tensors, *self._others):
            written.restore()

    def restore_attributes(self) -> None:
        """Put back plain attributes, and containers that grew: what a batch should not leave for the next one."""
        for module, attributes in self._attributes:
            if len(module.__dict__) != len(attributes) + len(_INTERNAL & module.__dict__.keys()):
                for name in [name for name in module.__dict__ if name not in _INTERNAL and name not in attributes]:
                    del module.__dict__[name]
            module.__dict__.update(attributes)
        for contents in self._contents:
            contents.restore(only_if_resized=True)

    def restore(self) -> None:
        """Put back everything."""
        self.restore_tensors()
        self.restore_attributes()
        for contents in self._contents:
            contents.restore()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


class _Value:
    """A tensor and its numbers, which are copied back only if the tensor's version says that it was written to."""

    def __init__(self, tensor: Tensor, device: str | None = None) -> None:
        self._tensor = tensor.detach()
        self._copy = tensor.detach().to(device, copy=True)
        self._version = tensor._version

    def written(self) -> bool:
        return self._tensor._version != self._version

    def restore(self) -> None:
        if self.written():
            self._tensor.copy_(self._copy)
            self._version = self._tensor._version


class _Contents:
    """A container and what it holds, containers inside it included."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._copy = copy.copy(value)
        self._held = list(value.values() if isinstance(value, dict) else value)
        self._inner = [_Contents(item) for item in self._held if isinstance(item, _CONTAINERS)]

    def tensors(self) -> list[Tensor]:
        inner = [tensor for contents in self._inner for tensor in contents.tensors()]
        return [item for item in self._held if isinstance(item, Tensor)] + inner

    def restore(self, only_if_resized: bool = False) -> None:
        if not only_if_resized or len(self._value) != len(self._copy):
            self._value.clear()
            if isinstance(self._value, (dict, set)):
                self._value.update(self._copy)
            else:
                self._value.extend(self._copy)
        for inner in self._inner:
            inner.restore(only_if_resized)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _INTERNAL}


@contextmanager
def silent(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Drop whatever the module logs, through ``self.log`` or through ``self.logger``."""
    loggers = trainer.loggers
    own_log = module.__dict__.get("log")
    trainer.loggers = [DummyLogger() for _ in loggers]
    # On the instance, so that it holds wherever the mixin stands in the class statement; `log_dict` goes through it.
    module.__dict__["log"] = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del module.__dict__["log"]
        if own_log is not None:
            module.__dict__["log"] = own_log
        trainer.loggers = loggers


@contextmanager
def no_trace(trainer: Trainer, module: LightningModule, probed: Sequence[Tensor]) -> Iterator[ModuleState]:
    """Run forward passes of the module's training step so that nothing but their return values remains.

    Args:
        trainer: The trainer, whose loggers are set aside.
        module: The module.
        probed: The parameters that the caller perturbs, and restores itself.

    Yields:
        The module's state, for putting parts of it back between two forward passes.
    """
    random = compat.rng_states(module.device)
    with silent(trainer, module), torch.no_grad():
        state = ModuleState(module, probed)
        try:
            yield state
        finally:
            state.restore()
            compat.set_rng_states(random)
