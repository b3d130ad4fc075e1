"""Leave no trace: what a forward pass through the user's ``training_step`` may change is put back.

The sweep runs the user's code many times between two training steps. What that code logs is dropped; buffers, metrics,
plain attributes, train/eval modes, ``requires_grad`` flags and random states are returned to what they were.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_vamo.core.sharding import local
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
        last: ``others`` of the state before, whose copies serve again where nothing has written to a parameter.

    Attributes:
        others: Copies of the parameters that are not probed, by their ``id``.
    """

    def __init__(self, module: nn.Module, probed: Sequence[Tensor] = (), last: "Mapping[int, _Other] | None" = None) -> None:
        modules = list(module.modules())
        self._registered = [(m, dict(m._buffers), m._parameters.keys() | m._modules.keys()) for m in modules]
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        self._attributes = [(m, _plain(m)) for m in modules]
        self._lengths = [len(m.__dict__) for m in modules]
        values = [value for _, attributes in self._attributes for value in attributes.values()]
        self._contents = _contents(values)
        held = [value for value in values if isinstance(value, Tensor)]
        held += [item for contents in self._contents for item in contents.held if isinstance(item, Tensor)]
        ids = {id(parameter) for parameter in probed}
        others = [parameter for parameter in module.parameters() if id(parameter) not in ids and not is_lazy(parameter)]
        self._buffers = [
            _Value(buffer) for _, buffers, _ in self._registered for buffer in buffers.values() if buffer is not None
        ]
        self.others = {id(parameter): _Other.of(parameter, last or {}) for parameter in others}
        self._tensors = [*map(_Value, held), *self.others.values()]

    def restore_tensors(self) -> None:
        """Put back the tensors that were written to: cheap enough to do after every forward pass."""
        for module, buffers, _ in self._registered:
            if any(module._buffers.get(name) is not buffer for name, buffer in buffers.items()):
                module._buffers.update(buffers)
        for buffer in self._buffers:
            # Always: BatchNorm writes its running statistics without a trace on the tensors' version counters.
            buffer.restore()
        for tensor in self._tensors:
            tensor.restore_if_written()

    def restore_attributes(self) -> None:
        """Put back plain attributes, and containers that grew: what a batch should not leave for the next one."""
        for module, buffers, names in self._registered:
            _drop_new(module._buffers, buffers.keys())
            _drop_new(module._parameters, names)
            _drop_new(module._modules, names)
        for (module, attributes), length in zip(self._attributes, self._lengths, strict=True):
            module.__dict__.update(attributes)
            if len(module.__dict__) != length:
                _drop_new(module.__dict__, attributes.keys() | _INTERNAL)
        for contents in self._contents:
            contents.restore(only_if_resized=True)

    def changed_attributes(self) -> list[tuple[nn.Module, dict[str, Any]]]:
        """Plain attributes that are new, or other objects than they were, by module."""
        missing = object()
        changed = []
        for module, attributes in self._attributes:
            new = {name: v for name, v in _plain(module).items() if attributes.get(name, missing) is not v}
            changed += [(module, new)] if new else []
        return changed

    def restore(self) -> None:
        """Put back everything, also what a write through ``.data`` hid from the version counters."""
        self.restore_tensors()
        for tensor in self._tensors:
            tensor.restore()
        self.restore_attributes()
        for contents in self._contents:
            contents.restore()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)


class _Value:
    """A tensor and its numbers."""

    def __init__(self, tensor: Tensor, device: str | None = None) -> None:
        self._tensor = tensor
        # Holds on to the storage: a step may give the tensor another one, as in `teacher.data = ...`.
        self._data = tensor.data
        self._local = local(self._data)
        # Nothing can write to a tensor that was expanded, and nothing can be copied into it.
        writable = not any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        self._copy = self._local.to(device, copy=True) if writable else None
        self._version = tensor._version

    def restore(self) -> None:
        if self._replaced():
            self._tensor.data = self._data
        if self._copy is not None:
            self._local.copy_(self._copy)
            self._version = self._tensor._version

    def restore_if_written(self) -> None:
        if self._tensor._version != self._version or self._replaced():
            self.restore()

    def _replaced(self) -> bool:
        return local(self._tensor.data).data_ptr() != self._local.data_ptr()


class _Other(_Value):
    """A parameter that is not probed, most often one of a frozen backbone.

    That may fill the device, so the copy waits in host memory. To make it anew for every step would take longer than the step:
    the copy serves for as long as a checksum of the parameter's bits stays the same. Version counters do not tell of writes
    through ``.data``, as a teacher's update often is.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, "cpu")
        self._checksum = checksum(self._local)

    @classmethod
    def of(cls, tensor: Tensor, last: Mapping[int, "_Other"]) -> "_Other":
        """The parameter's copy among ``last`` if it still holds, else a new one."""
        other = last.get(id(tensor))
        if other is None or other._tensor is not tensor or other._replaced():
            return cls(tensor)
        if checksum(other._local) != other._checksum:
            return cls(tensor)
        other._version = tensor._version
        return other

    def restore(self) -> None:
        if self._replaced() or checksum(self._local) != self._checksum:
            super().restore()
        self._version = self._tensor._version


def checksum(tensor: Tensor) -> int:
    """A sum over a tensor's bits, which a change of its numbers changes, but for a coincidence."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
    return int(real.detach().contiguous().view(whole).sum(dtype=torch.int64))


class _Contents:
    """A container and what it holds, but not what the containers in it hold."""

    def __init__(self, value: Any) -> None:
        self._value = value
        self._copy = copy.copy(value)
        self.held = _items(value)

    def restore(self, only_if_resized: bool = False) -> None:
        if len(self._value) == len(self._copy) and (only_if_resized or self._unchanged()):
            return
        self._value.clear()
        if isinstance(self._value, (dict, set)):
            self._value.update(self._copy)
        else:
            self._value.extend(self._copy)

    def _unchanged(self) -> bool:
        if isinstance(self._value, set):
            return bool(self._value == self._copy)
        if isinstance(self._value, dict) and list(self._value) != list(self._copy):
            return False
        return all(a is b for a, b in zip(_items(self._value), self.held, strict=True))


def _items(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _contents(values: Iterable[Any]) -> list[_Contents]:
    """Every container among ``values``, and in them, once; containers may hold each other."""
    found: dict[int, _Contents] = {}
    waiting = [value for value in values if isinstance(value, _CONTAINERS)]
    while waiting:
        value = waiting.pop()
        if id(value) not in found:
            found[id(value)] = contents = _Contents(value)
            waiting += [item for item in contents.held if isinstance(item, _CONTAINERS)]
    return list(found.values())


def _drop_new(registry: dict[str, Any], names: Set[str]) -> None:
    if registry and not registry.keys() <= names:
        for name in registry.keys() - names:
            del registry[name]


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _INTERNAL}


@contextmanager
def silent(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Drop whatever the module logs, through ``self.log`` or through ``self.logger``."""
    loggers = trainer.loggers
    trainer.loggers = [_SilentLogger(logger) for logger in loggers]
    try:
        # On the instance, so that it holds wherever the mixin stands in the class statement; `log_dict` goes through it.
        with compat.replaced(module, "log", lambda *args, **kwargs: None):
            yield
    finally:
        trainer.loggers = loggers


class _SilentLogger(DummyLogger):
    """Stands in for a logger: knows its name and folders, and drops what is logged."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def name(self) -> Any:
        return self._logger.name

    @property
    def version(self) -> Any:
        return self._logger.version

    @property
    def save_dir(self) -> str | None:
        return self._logger.save_dir

    @property
    def root_dir(self) -> str | None:
        return getattr(self._logger, "root_dir", None)

    @property
    def log_dir(self) -> str | None:
        return getattr(self._logger, "log_dir", None)


@contextmanager
def no_trace(
    trainer: Trainer, module: LightningModule, probed: Sequence[Tensor], last: Mapping[int, _Other] | None = None
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
