"""The global random generators, which are set back before each forward pass."""

import ctypes
import random
from typing import Any

import numpy as np
import torch

_KEY, _POSITION = 624 * 4, 4


class RandomState:
    """The states of the global generators of torch, numpy and Python, and of CUDA where the model lives there.

    To set numpy's and Python's generators takes longer than the forward pass of a small model, and most models do not draw from
    these: then :meth:`settle` saves the time.

    Args:
        device: The model's device.
    """

    def __init__(self, device: torch.device) -> None:
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if device.type == "cuda" else None
        self._numpy = _numpy.state()
        self._python: tuple[Any, ...] | None = random.getstate()

    def set(self) -> None:
        """Set the generators to these states."""
        torch.set_rng_state(self._torch)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._numpy is not None:
            _numpy.set(self._numpy)
        if self._python is not None:
            random.setstate(self._python)

    def settle(self) -> None:
        """Leave generators alone from now on that are still in their states: what ran in between does not draw from them.

        Torch's are set in any case, since they may well be drawn from, and that takes no longer than to look at them.
        """
        if _numpy.state() is self._numpy:
            self._numpy = None
        if self._python is not None and random.getstate() == self._python:
            self._python = None


class _Numpy:
    """Numpy's global generator, whose state takes as long to read as a small model's forward pass: none is read twice.

    The Mersenne Twister's state begins with its key and its position, at an address that numpy gives. They tell whether a
    number was drawn since the state was last read, unless a normal number was left over, which is kept elsewhere.
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
        """Set the state to one that :meth:`state` gave."""
        np.random.set_state(state)
        self._state = None  # else a normal number that is left over again would not be noticed


def global_generators() -> list[Any]:
    """The global random generators, which are set back by whoever draws from them.

    Returns:
        Those of torch, numpy and Python.
    """
    bound: list[Any] = [np.random.get_state, random.getstate]
    cuda = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return [torch.default_generator, global_bits(), *(method.__self__ for method in bound), *cuda]


def global_bits() -> Any:
    """The source of the random bits of numpy's global generator."""
    numpy: Any = np.random  # whose stubs lack the function
    return numpy.get_bit_generator()


def _address(bits: Any) -> int:
    """Where the state of a Mersenne Twister lies; 0 for other generators, or if it is laid out as in no known version."""
    if type(bits) is not np.random.MT19937:
        return 0
    address = int(bits.ctypes.state_address)
    state = bits.state["state"]
    expected = state["key"].astype(np.uint32).tobytes() + np.int32(state["pos"]).tobytes()
    return address if ctypes.string_at(address, _KEY + _POSITION) == expected else 0


_numpy = _Numpy()
