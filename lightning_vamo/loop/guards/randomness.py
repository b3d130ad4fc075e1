"""The global random generators, which are set back before each forward pass."""

import ctypes
import random
import sys
from typing import Any

import numpy as np
import torch

_KEY, _POSITION = 624 * 4, 4


class RandomState:
    """The states of the global generators of torch, numpy and Python, and of CUDA if the model is on a CUDA device.

    To set the generators of numpy and Python takes longer than the forward pass of a small model. Most models do not draw from
    these two: for such models :meth:`settle` saves the time.

    Args:
        device: The model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else None
        self._numpy = _numpy.state()
        self._python: tuple[Any, ...] | None = _python.state()

    def set(self) -> None:
        """Set the generators to the remembered states."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            _numpy.set(self._numpy)
        if self._python is not None:
            random.setstate(self._python)

    def settle(self) -> None:
        """Leave the generators of numpy and Python alone from now on if their states have not changed.

        The model does not draw from a generator whose state has not changed. Torch's generator is set each time all the same:
        most random numbers come from it, and to set its state takes no longer than to look at the state.
        """
        if _numpy.state() is self._numpy:
            self._numpy = None
        if self._python is not None:
            state = _python.state()
            if state is self._python or state == self._python:
                self._python = None


class _Numpy:
    """Numpy's global generator; its state is read only if it has changed, since a read takes as long as a small forward pass.

    The state of the Mersenne Twister begins with a key and a position, at an address that numpy gives. Key and position show
    whether a number was drawn since the last read. A left-over normal number, which is stored elsewhere, is checked too.
    """

    def __init__(self) -> None:
        self._bits: Any = None
        self._address = 0
        self._seen = b""
        self._state: Any = None

    def state(self) -> Any:
        """The state: the same object if nothing has been drawn since the last call."""
        bits = global_bits()
        if bits is not self._bits:
            self._bits, self._address, self._state = bits, _address(bits), None
        seen = ctypes.string_at(self._address, _KEY + _POSITION) if self._address else b""
        if not seen or self._state is None or seen != self._seen or self._state["has_gauss"]:
            self._seen, self._state = seen, np.random.get_state(legacy=False)
        return self._state

    def set(self, state: Any) -> None:
        """Set a state that :meth:`state` returned."""
        np.random.set_state(state)
        self._state = None  # key and position do not show a normal number that is left over again


class _Python:
    """Python's global generator; its state is a tuple of 625 numbers, so it is read only if it has changed.

    In CPython the generator's memory holds a position and the key of a Mersenne Twister behind the head of an object. A copy of
    these bytes takes a tenth of the time of the tuple.
    """

    def __init__(self) -> None:
        self._generator: Any = None
        self._address = 0
        self._seen: Any = None
        self._state: tuple[Any, ...] = ()

    def state(self) -> tuple[Any, ...]:
        """The state: the same object if nothing has been drawn since the last call."""
        bound: Any = random.getstate
        generator: Any = getattr(bound, "__self__", None)
        if generator is not self._generator:
            self._generator, self._address, self._seen = generator, _place(generator), None
        if not self._address:
            return random.getstate()
        seen = ctypes.string_at(self._address, _KEY + _POSITION), generator.gauss_next
        if seen != self._seen:
            self._seen, self._state = seen, random.getstate()
        return self._state


def global_generators() -> list[Any]:
    """The global random generators, which the walk leaves alone: :class:`RandomState` sets them back.

    Returns:
        The generators of torch, numpy and Python.
    """
    bound: list[Any] = [np.random.get_state, random.getstate]
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return [torch.default_generator, global_bits(), *(method.__self__ for method in bound), *cuda]


def global_bits() -> Any:
    """The source of the random bits of numpy's global generator."""
    numpy: Any = np.random  # whose stubs lack the function
    return numpy.get_bit_generator()


def _address(bits: Any) -> int:
    """The address of the state of a Mersenne Twister; 0 for other generators, or if its layout is not known."""
    if type(bits) is not np.random.MT19937:
        return 0
    address = int(bits.ctypes.state_address)
    state = bits.state["state"]
    expected = state["key"].astype(np.uint32).tobytes() + np.int32(state["pos"]).tobytes()
    return address if ctypes.string_at(address, _KEY + _POSITION) == expected else 0


def _place(generator: Any) -> int:
    """The address of the position and key of one of Python's generators; 0 if they are not where CPython keeps them."""
    size = object.__basicsize__ + _POSITION + _KEY
    if sys.implementation.name != "cpython" or type(generator) is not random.Random or random.Random.__basicsize__ < size:
        return 0
    address = id(generator) + object.__basicsize__
    *key, position = generator.getstate()[1]
    expected = np.int32(position).tobytes() + np.array(key, dtype=np.uint32).tobytes()
    return address if ctypes.string_at(address, _KEY + _POSITION) == expected else 0


_numpy = _Numpy()
_python = _Python()
