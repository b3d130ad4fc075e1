"""What a forward pass can change on a module."""

import copy
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_vamo.loop.guards.tensors import FrozenCopy, TensorCopy

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

    def __init__(self, module: nn.Module, probed: Sequence[Tensor] = (), last: Mapping[int, FrozenCopy] | None = None) -> None:
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
            TensorCopy(buffer) for _, buffers, _ in self._registered for buffer in buffers.values() if buffer is not None
        ]
        self.others = {id(parameter): FrozenCopy.of(parameter, last or {}) for parameter in others}
        self._tensors = [*map(TensorCopy, held), *self.others.values()]

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


class _Contents:
    """A container and what it holds, but not what the containers in it hold."""

    def __init__(self, value: Any) -> None:
        self.detached = value
        self._copy = copy.copy(value)
        self.held = _items(value)

    def restore(self, only_if_resized: bool = False) -> None:
        if len(self.detached) == len(self._copy) and (only_if_resized or self._unchanged()):
            return
        self.detached.clear()
        if isinstance(self.detached, (dict, set)):
            self.detached.update(self._copy)
        else:
            self.detached.extend(self._copy)

    def _unchanged(self) -> bool:
        if isinstance(self.detached, set):
            return bool(self.detached == self._copy)
        if isinstance(self.detached, dict) and list(self.detached) != list(self._copy):
            return False
        return all(a is b for a, b in zip(_items(self.detached), self.held, strict=True))


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
