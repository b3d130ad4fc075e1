"""Kinds of objects: the type of an object decides how the walk treats the object."""

import array
import functools
import itertools
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from enum import IntEnum, auto
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class Kind(IntEnum):
    """How the walk treats objects of a type."""

    LEFT_ALONE = auto()
    """Is a constant, or belongs to something that runs on its own."""
    ALIVE = auto()
    """Cannot be copied; an object that has such an attribute is left alone too, since half of an object cannot be put back."""
    TENSOR = auto()
    """Has numbers."""
    MODULE = auto()
    """Has attributes, submodules, parameters and buffers."""
    SCRIPT = auto()
    """Keeps its parameters and buffers out of Python's sight."""
    OBJECT = auto()
    """Has attributes."""
    CONTAINER = auto()
    """Has items, which can be added and removed."""
    FROZEN = auto()
    """Has items, which stay the same, as a tuple has."""
    ARRAY = auto()
    """Is a numpy array."""
    BYTES = auto()
    """Is a sequence of bytes or plain numbers."""
    GENERATOR = auto()
    """Draws random numbers."""
    ITERATOR = auto()
    """Moves on with each item, and can be copied."""
    FUNCTION = auto()
    """May have variables in its closure."""
    METHOD = auto()
    """Is bound to an object."""
    VIEW = auto()
    """Shows the memory of an object."""
    PARTIAL = auto()
    """Is a function with arguments."""


# Parts of large packages whose objects may hold a user's state. Other objects of these packages are left alone.
_OPEN = {
    "torch": (nn.Module, Optimizer, LRScheduler, Distribution, torch.amp.GradScaler),
    "lightning": (nn.Module,),
    "pytorch_lightning": (nn.Module,),
    "lightning_fabric": (nn.Module,),
    "lightning_vamo": (),
    "numpy": (),
    "builtins": (),
}
# Their objects write to disk or send things elsewhere.
_TRACKERS = {"tensorboard", "tensorboardX", "wandb", "mlflow", "comet_ml", "neptune", "clearml", "aim", "swanlab"}
# Parts of the standard library whose objects hold nothing but data.
_DATA = {"abc", "typing", "collections", "types", "argparse", "dataclasses", "contextlib"}
# Parts of the standard library whose objects share their state with other threads or processes.
_CONCURRENT = {"multiprocessing", "asyncio", "concurrent", "subprocess", "socket", "_socket"}
_LIBRARIES = _OPEN.keys() | sys.stdlib_module_names | {"torchmetrics", "torchvision", "torchaudio", "lightning_utilities"}

_CONTAINERS = (list, dict, set, deque)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, Random)
_ALIVE = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, threading.Thread, Executor)
_LOADING = tuple(getattr(torch.utils.data.dataloader, name) for name in ("_BaseDataLoaderIter",))
_EMPTY: list[Any] = [[], (), {}, range(0), {}.values(), {}.items()]
_ITERATORS = {
    *(type(iter(empty)) for empty in (*_EMPTY, set(), "", b"")),
    *(type(reversed(empty)) for empty in _EMPTY),
    *(enumerate, zip, map, filter, reversed),
    *(value for value in vars(itertools).values() if isinstance(value, type) and issubclass(value, Iterator)),
}


class Kinds(dict[type, Kind]):
    """The kind of each type, found out once and then looked up: a look-up takes half the time of a call."""

    def __missing__(self, cls: type) -> Kind:
        if len(self) > 4096:  # a process may make new types again and again
            self.clear()
        self[cls] = kind = _kind_of(cls)
        return kind


KINDS = Kinds()


def _kind_of(cls: type) -> Kind:
    if issubclass(cls, torch.jit.ScriptModule):
        return Kind.SCRIPT
    for bases, kind in _BY_BASE:
        if issubclass(cls, bases):
            return kind
    if cls in _ITERATORS:
        return Kind.ITERATOR
    roots = [root(base) for base in cls.__mro__]
    if issubclass(cls, (*_ALIVE, *_LOADING)) or not _CONCURRENT.isdisjoint(roots):
        return Kind.ALIVE
    return Kind.OBJECT if all(map(_is_open, itertools.repeat(cls), cls.__mro__)) else Kind.LEFT_ALONE


_BY_BASE: list[tuple[Any, Kind]] = [
    ((type, types.ModuleType, np.generic, np.memmap, torch.Size), Kind.LEFT_ALONE),
    (Tensor, Kind.TENSOR),
    (nn.Module, Kind.MODULE),
    (np.ndarray, Kind.ARRAY),
    (_CONTAINERS, Kind.CONTAINER),
    ((tuple, frozenset), Kind.FROZEN),
    (_GENERATORS, Kind.GENERATOR),
    ((bytearray, array.array), Kind.BYTES),
    (types.FunctionType, Kind.FUNCTION),
    (types.MethodType, Kind.METHOD),
    (memoryview, Kind.VIEW),
    (functools.partial, Kind.PARTIAL),
]


def _is_open(cls: type, base: type) -> bool:
    """Whether one of a type's bases allows the walk to look into objects of the type."""
    package = root(base)
    if base is object or package in _DATA:
        return True
    if package in _OPEN:
        return issubclass(cls, _OPEN[package])
    return package not in sys.stdlib_module_names and package not in _TRACKERS


def root(value: Any) -> str:
    """The outermost package that a class or function comes from."""
    return str(getattr(value, "__module__", "")).partition(".")[0]


_Found = TypeVar("_Found")


def by_type(function: Callable[[type], _Found]) -> Callable[[type], _Found]:
    """Remember a function's result for each type."""
    return functools.lru_cache(maxsize=4096)(function)


@by_type
def own_classes(cls: type) -> tuple[type, ...]:
    """The user's own classes among a type and its bases: their class attributes are state too.

    Args:
        cls: The type of an object.

    Returns:
        All classes except those of torch, Lightning, numpy and the standard library.
    """
    return tuple(base for base in cls.__mro__ if root(base) not in _LIBRARIES)


@by_type
def slots_of(cls: type) -> tuple[types.MemberDescriptorType, ...]:
    """The slots of a type: attributes that its objects keep outside of their ``__dict__``.

    Args:
        cls: The type of an object.

    Returns:
        The descriptors that read and write the slots.
    """
    members = [vars(base).values() for base in cls.__mro__ if "__slots__" in vars(base)]
    return tuple(item for values in members for item in values if isinstance(item, types.MemberDescriptorType))


def attributes_of(value: Any) -> dict[str, Any] | None:
    """An object's ``__dict__``, even if its class overrides access to attributes.

    Args:
        value: The object.

    Returns:
        The dict; None if there is none.
    """
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return attributes if type(attributes) is dict else None


def is_users(function: types.FunctionType) -> bool:
    """Whether a function is the user's own, so that the variables in its closure are state.

    Args:
        function: A function. Its ``__module__`` does not decide: a library's decorator may have copied the user's name.

    Returns:
        False for functions that torch, Lightning, numpy or the standard library define.
    """
    return str(function.__globals__.get("__name__", "")).partition(".")[0] not in _LIBRARIES
