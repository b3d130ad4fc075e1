"""The walk over all objects that user code can reach from its module: the walk finds the objects that hold state.

The walk begins with the module, the Trainer's optimizers and schedulers, and the attributes that user code has set on the
Trainer. It goes through attributes, slots, items, closures of functions, and the class attributes of the user's own classes.
It does not go into Python modules, other types, global names in functions, datasets, loaders, loggers, other callbacks, the
parts of the Trainer, file handles, locks, threads and processes, nor into the items of containers with more than ``LARGE``
items. The nearest objects to the module come first, and the walk ends after ``LIMIT`` objects. Other objects are left alone.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from types import FunctionType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_vamo.core.sharding import local
from lightning_vamo.loop.guards.contents import LARGE, Container
from lightning_vamo.loop.guards.forms import ATTRIBUTES, BUILT_IN, CELL, CLASS, SLOTS, SlotsOf, form_of
from lightning_vamo.loop.guards.kinds import KINDS, Kind, attributes_of, is_users, own_classes, slots_of
from lightning_vamo.loop.guards.leaves import Leaf, Replay, array_leaf, bytes_leaf, generator_leaf, lazy_leaf
from lightning_vamo.loop.guards.randomness import global_generators
from lightning_vamo.loop.guards.tensors import SMALL, where

LIMIT = 2**16
"""Number of objects after which the walk ends."""

LARGEST_STATE = 2**20
"""Bytes beyond which an optimizer's state of the probed parameters is not copied: it may be twice as large as the model."""


class Walk:
    """Collects the objects that hold state, by kind.

    Args:
        probed: The parameters that the caller perturbs and restores. No tensor that shares their memory is put back.
        seen: Objects that another walk has been to, by ``id``.

    Attributes:
        containers: Objects that hold other objects.
        empty: Empty containers of Python's own types.
        owners: Modules and plain objects, whose class may be exchanged.
        tensors: Tensors that are neither probed nor parameters.
        parameters: Parameters that are not probed.
        probed: The probed parameters.
        large: Arrays of more than ``SMALL`` bytes, each with a tensor that shares the array's memory.
        leaves: Small arrays, bytes, and random generators.
        iterators: Iterators that can be copied, each with its stand-in.
        unseen: The ``id`` of tensors whose version counters do not show all writes: BatchNorm's running statistics.
        too_large: The optimizers' states of the probed parameters, if they are too large to be copied for every row.
        seen: Every object that the walk has been to, by ``id``.
    """

    def __init__(self, probed: Sequence[Tensor], seen: dict[int, Any] | None = None) -> None:
        self.containers: list[Container] = []
        self.empty: list[Any] = []
        self.owners: list[Any] = []
        self.tensors: list[Tensor] = []
        self.parameters: list[Tensor] = []
        self.probed = probed
        self.large: list[tuple[Any, Tensor]] = []
        self.leaves: list[Leaf] = []
        self.iterators: list[tuple[Any, Replay]] = []
        self.unseen: set[int] = set()
        self.too_large: list[Tensor] = []
        self.seen: dict[int, Any] = {id(held): held for held in [*global_generators(), *probed]} if seen is None else dict(seen)
        self._memory = {where(tensor) for tensor in probed} - {0}
        self._waiting: deque[tuple[Kind, Any]] = deque()
        self._flagged: list[Tensor] = []
        self._leaves: list[bool] | None = None

    def go(self, module: nn.Module, trainer: Trainer | None = None) -> "Walk":
        """Walk from a module and from its Trainer's optimizers, schedulers and user attributes.

        Args:
            module: The module.
            trainer: Its trainer, if there is one.

        Returns:
            The walk itself.
        """
        self._expand([module])
        for parameter in self.probed:
            self._tensors_own(parameter)
        if trainer is not None:
            self._holder(trainer, vars(trainer))
            self._expand(trainer.optimizers)
            self._expand(config.scheduler for config in trainer.lr_scheduler_configs)
        return self._to_the_end()

    def into(self, values: Iterable[Any]) -> "Walk":
        """Walk from any objects.

        Args:
            values: The objects.

        Returns:
            The walk itself.
        """
        self._expand(values)
        return self._to_the_end()

    def _to_the_end(self) -> "Walk":
        waiting = self._waiting
        while waiting and len(self.seen) < LIMIT:
            kind, value = waiting.popleft()
            _VISITS[kind](self, value)
        waiting.clear()
        return self

    def _expand(self, values: Iterable[Any]) -> None:
        """Note objects to visit, each object once."""
        seen, waiting, left_alone, container = self.seen, self._waiting, Kind.LEFT_ALONE, Kind.CONTAINER
        for value in values:
            kind = KINDS[type(value)]
            if kind is left_alone or id(value) in seen:
                continue
            if kind is container and not value and type(value) in BUILT_IN:
                self.empty.append(value)
                continue
            seen[id(value)] = value
            waiting.append((kind, value))

    @property
    def flagged(self) -> list[Tensor]:
        """The parameters, probed or not, and the other tensors whose ``requires_grad`` can be set."""
        leaves = [*map(attrgetter("is_leaf"), self.tensors)]  # changes if a graph reaches a tensor, or is taken off the tensor
        if leaves != self._leaves:
            others = (tensor for tensor, leaf in zip(self.tensors, leaves, strict=True) if leaf and tensor.is_floating_point())
            self._flagged = [*self.parameters, *(held for held in self.probed if isinstance(held, nn.Parameter)), *others]
            self._leaves = leaves
        return self._flagged

    # ---- one method per kind

    def _module(self, module: nn.Module) -> None:
        attributes = vars(module)
        self._holder(module, attributes)
        for registry in ("_parameters", "_buffers", "_modules"):  # even with more items than `LARGE`
            self._expand(attributes.get(registry, {}).values())
        if isinstance(module, _NormBase):
            self.unseen |= {id(buffer) for buffer in module._buffers.values() if buffer is not None}

    def _object(self, value: Any) -> None:
        attributes = attributes_of(value)
        if attributes is not None and any(KINDS[type(held)] is Kind.ALIVE for held in attributes.values()):
            return
        if isinstance(value, Optimizer) and _size(_states(value, self.probed)) > LARGEST_STATE:
            states = _states(value, self.probed)
            self.too_large += (held for state in states for held in state.values() if isinstance(held, Tensor))
            self.seen |= {id(state): state for state in states}
        self._holder(value, attributes)

    def _container(self, value: Any) -> None:
        form = form_of(type(value))
        self.containers.append(Container(value, form))
        view = form.views(value)[-1]
        if len(view) <= LARGE:
            self._expand(view)
        if type(value) not in BUILT_IN:
            self._holder(value, attributes_of(value))

    def _frozen(self, value: Any) -> None:
        if len(value) <= LARGE:
            self._expand(value)
        if type(value) is not tuple and type(value) is not frozenset:
            self._holder(value, attributes_of(value))

    def _holder(self, value: Any, attributes: dict[str, Any] | None) -> None:
        """Note an object's attributes and slots, and the attributes of its classes."""
        if attributes is not None:
            self.owners.append(value)
            self._attributes(attributes)
        members = slots_of(type(value))
        if members:
            slots = SlotsOf(value, members)
            self.containers.append(Container(slots, SLOTS))
            self._expand(slots)
        for owner in own_classes(type(value)):
            if id(owner) not in self.seen:
                self.seen[id(owner)] = owner
                self.containers.append(Container(owner, CLASS))
                self._expand(CLASS.items(CLASS.capture(owner)))
                self._methods(owner)

    def _attributes(self, attributes: dict[str, Any]) -> None:
        self.containers.append(Container(attributes, ATTRIBUTES))
        self._expand(attributes.values())

    def _methods(self, owner: type) -> None:
        """Note the attributes and defaults of a class's methods; the global names in methods refer to code, not to state."""
        for method in CLASS.capture(owner).values():
            function = getattr(method, "__func__", method)
            if isinstance(function, FunctionType) and "__wrapped__" not in vars(function):
                self._attributes(vars(function))
                self._expand([function.__defaults__, function.__kwdefaults__])

    def _tensors_own(self, tensor: Tensor) -> None:
        """Note the attributes that user code has given to a tensor."""
        if type(tensor) in (Tensor, nn.Parameter):
            if vars(tensor):
                self._attributes(vars(tensor))
            else:
                self.empty.append(vars(tensor))

    def _tensor(self, tensor: Tensor) -> None:
        self._tensors_own(tensor)
        if is_lazy(tensor):
            self.leaves.append(lazy_leaf(tensor))
        if where(tensor) in self._memory:
            return
        (self.parameters if isinstance(tensor, nn.Parameter) else self.tensors).append(tensor)

    def _array(self, value: np.ndarray[Any, Any]) -> None:
        if type(value) is not np.ndarray:
            self._holder(value, attributes_of(value))
        self._expand([value.base])
        if not value.flags.writeable or any(start <= value.ctypes.data < end for start, end in self._ranges()):
            return
        if value.dtype.hasobject and value.size <= LARGE:
            self._expand(value.ravel())
        if value.nbytes > SMALL and value.flags.c_contiguous and not value.dtype.hasobject:
            self.large.append((value, torch.from_numpy(value.view(np.ndarray).reshape(-1).view(np.uint8))))
        else:
            self.leaves.append(array_leaf(value))

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """Addresses of the probed parameters in host memory."""
        for storage in (local(tensor).untyped_storage() for tensor in self.probed if tensor.device.type == "cpu"):
            yield storage.data_ptr(), storage.data_ptr() + storage.nbytes()

    def _generator(self, value: Any) -> None:
        leaf = generator_leaf(value)
        if leaf is not None:
            self.leaves.append(leaf)

    def _bytes(self, value: Any) -> None:
        self.leaves.append(bytes_leaf(value))

    def _iterator(self, value: Iterator[Any]) -> None:
        try:
            self.iterators.append((value, Replay(value)))
        except TypeError:
            return

    def _function(self, function: Any) -> None:
        if not is_users(function):
            return
        for cell in function.__closure__ or ():
            if id(cell) not in self.seen:
                self.seen[id(cell)] = cell
                self.containers.append(Container(cell, CELL))
                self._expand(CELL.capture(cell))
        self._attributes(vars(function))
        self._expand([function.__defaults__, function.__kwdefaults__])

    def _method(self, method: Any) -> None:
        self._expand([method.__self__])

    def _partial(self, partial: Any) -> None:
        self._expand([partial.func, *partial.args, partial.keywords])
        self._holder(partial, attributes_of(partial))


_VISITS: dict[Kind, Callable[[Walk, Any], None]] = {
    Kind.ALIVE: lambda walk, value: None,
    Kind.TENSOR: Walk._tensor,
    Kind.MODULE: Walk._module,
    Kind.SCRIPT: lambda walk, module: walk._expand([*module.parameters(), *module.buffers()]),
    Kind.OBJECT: Walk._object,
    Kind.CONTAINER: Walk._container,
    Kind.FROZEN: Walk._frozen,
    Kind.ARRAY: Walk._array,
    Kind.BYTES: Walk._bytes,
    Kind.GENERATOR: Walk._generator,
    Kind.ITERATOR: Walk._iterator,
    Kind.FUNCTION: Walk._function,
    Kind.METHOD: Walk._method,
    Kind.VIEW: lambda walk, view: walk._expand([view.obj]),
    Kind.PARTIAL: Walk._partial,
}


def _states(optimizer: Optimizer, probed: Sequence[Tensor]) -> list[dict[Any, Any]]:
    """The state that an optimizer keeps for each probed parameter."""
    state = optimizer.state
    return [state[tensor] for tensor in probed if tensor in state and isinstance(state[tensor], dict)]


def _size(states: Sequence[dict[Any, Any]]) -> int:
    return sum(held.nbytes for state in states for held in state.values() if isinstance(held, Tensor))
