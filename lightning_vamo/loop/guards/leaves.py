"""Leaves: random generators, arrays, bytes and iterators, which hold state but no other objects."""

import copy
import itertools
import warnings
from array import array
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import torch

from lightning_vamo.loop.guards.kinds import KINDS, Kind


class Leaf:
    """A state that is put back after every forward pass, since there is no quick way to tell whether it has changed.

    Args:
        read: Gives a copy of the state.
        write: Sets the state.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.capture = read
        """Gives a copy of the state."""
        self.put = write
        """Puts back a state that ``capture`` gave."""

    def differs(self, state: Any) -> bool:
        """Whether the present state differs from an earlier state.

        Args:
            state: A state that ``capture`` returned.

        Returns:
            True if something has changed.
        """
        return not _same(self.capture(), state)


def generator_leaf(generator: Any) -> Leaf | None:
    """The leaf that puts back a random generator.

    Args:
        generator: A generator of torch, numpy or Python.

    Returns:
        The leaf; None for a generator without a state of its own, such as one that asks the operating system.
    """
    if isinstance(generator, torch.Generator):
        return Leaf(generator.get_state, generator.set_state)
    if isinstance(generator, Random):
        try:
            generator.getstate()
        except NotImplementedError:
            return None
        return Leaf(generator.getstate, generator.setstate)
    if isinstance(generator, np.random.RandomState):
        return Leaf(lambda: generator.get_state(legacy=False), generator.set_state)
    bits = getattr(generator, "bit_generator", generator)
    return Leaf(lambda: bits.state, lambda state: setattr(bits, "state", state))


def array_leaf(value: np.ndarray[Any, Any]) -> Leaf:
    """The leaf that puts back a numpy array.

    Args:
        value: The array, which must be writeable.

    Returns:
        The leaf.
    """
    plain = value.view(np.ndarray)
    return Leaf(plain.copy, lambda numbers: np.copyto(plain, numbers))


def bytes_leaf(value: "bytearray | array[Any]") -> Leaf:
    """The leaf that puts back a sequence of bytes or plain numbers.

    Args:
        value: The sequence.

    Returns:
        The leaf.
    """
    whole = slice(None)
    return Leaf(lambda: value[whole], lambda items: value.__setitem__(whole, items))


def lazy_leaf(tensor: torch.Tensor) -> Leaf:
    """The leaf that makes a lazy parameter or buffer lazy again, after a forward pass has given it a shape.

    Args:
        tensor: The parameter or buffer, before it has a shape.

    Returns:
        The leaf.
    """
    cls, data = type(tensor), tensor.data

    def put(_: object) -> None:
        if type(tensor) is not cls:
            tensor.data = data
            tensor.__class__ = cls

    return Leaf(lambda: type(tensor), put)


def _same(one: Any, other: Any) -> bool:
    """Whether two states of generators or arrays are the same."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool(one.dtype == other.dtype and one.tobytes() == other.tobytes())
    return bool(one == other)


class Replay(Leaf):
    """Stands in for an iterator, so that each forward pass gets the same items.

    An iterator cannot be put back. So during forward passes, this object takes the iterator's place and goes through copies of
    the iterator; the iterator itself does not move.

    Args:
        original: The iterator.

    Raises:
        TypeError: If the iterator cannot be copied.
    """

    def __init__(self, original: Iterator[Any]) -> None:
        super().__init__(lambda: copied(self._current), self._go_on_from)
        self._current = copied(original)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._current)

    def _go_on_from(self, state: Any) -> None:
        self._current = copied(state)

    def differs(self, state: Any) -> bool:
        """True: iterators do not compare."""
        return True


_TEE: Any = type(itertools.tee(())[0])


def copied(iterator: Any) -> Any:
    """A copy of an iterator, which goes over the same items and does not move the original.

    Args:
        iterator: One of Python's own iterators.

    Returns:
        The copy.

    Raises:
        TypeError: If the iterator, or an iterator that it reads from, cannot be copied.
    """
    if type(iterator) is _TEE:
        return copy.copy(iterator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns for iterators of itertools; 3.14 refuses them
        function, arguments, *state = iterator.__reduce__()
    fresh = function(*map(_apart, arguments))
    if state and state[0] is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            fresh.__setstate__(_apart_state(state[0]))
    return fresh


def _apart(part: Any) -> Any:
    """A part of an iterator; an iterator within is copied, so that the copy does not move the original."""
    if KINDS[type(part)] is Kind.ITERATOR:
        return copied(part)
    if hasattr(part, "__next__"):
        raise TypeError(f"{type(part).__name__} cannot be copied")
    return part


def _apart_state(state: Any) -> Any:
    """A part of an iterator's state; a list is copied, since ``itertools.cycle`` goes on collecting items in its list."""
    if type(state) is tuple:
        return tuple(map(_apart_state, state))
    return list(state) if type(state) is list else _apart(state)
