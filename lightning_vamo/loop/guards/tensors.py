"""Copies of tensors, which can tell whether the original tensor was written to."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_vamo.core.sharding import is_sharded, local

SMALL = 2**16
"""Bytes up to which a tensor is copied anew for each state: a new copy is as fast as a comparison with the old copy."""

FEW = 2**24
"""Bytes of parameters up to which they are copied on the GPU that they are on, where a copy takes next to no time."""


class Place:
    """A tensor, and the storage of its numbers.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Keeps the storage: a step may give the tensor another storage, as in `teacher.data = ...`. A write to `self.data`
        # does not move the tensor's version counter. It must not: a graph that the user keeps may have saved the tensor.
        self.data = tensor.data
        self.is_sharded = is_sharded(tensor)
        self.numbers = local(self.data) if self.is_sharded else self.data

    def rebind(self) -> None:
        """Put the tensor back into its storage."""
        if self.is_elsewhere():
            self.tensor.data = self.data

    def is_elsewhere(self) -> bool:
        """Whether the tensor has another storage now, or shows another part of the same storage."""
        held, numbers = local(self.tensor.data) if self.is_sharded else self.tensor, self.numbers
        return held.data_ptr() != numbers.data_ptr() or held.shape != numbers.shape or held.stride() != numbers.stride()


class TensorCopy(Place):
    """A tensor, and a copy of its numbers.

    Args:
        tensor: The tensor.
        device: Device of the copy; by default the tensor's device.
        owner: The object that the numbers belong to, such as a numpy array; by default the tensor itself.
    """

    def __init__(self, tensor: Tensor, device: str | None = None, owner: Any = None) -> None:
        super().__init__(tensor)
        self.owner = tensor if owner is None else owner
        # An expanded tensor cannot be written to, and nothing can be copied into it.
        self.copy = self.numbers.to(device, copy=True) if _is_writable(self.numbers) else None

    def restore(self) -> None:
        """Put back the storage and the numbers."""
        self.rebind()
        if self.copy is not None:
            self.numbers.copy_(self.copy)

    def is_written(self) -> bool:
        """Whether the numbers have changed; this reads all numbers."""
        return self.copy is not None and not same_bits(self.numbers, self.copy)

    def refreshed(self) -> "TensorCopy":
        """A copy of the tensor as it is now: this object, with new numbers."""
        if self.copy is not None:
            self.copy.copy_(self.numbers)
        return self

    def capture(self) -> Any:
        """The tensor's present numbers and storage."""
        return self.tensor.data, self.tensor.data.clone()

    def put(self, state: Any) -> None:
        """Give the tensor the state that :meth:`capture` returned."""
        data, numbers = state
        if self.is_elsewhere() or data.data_ptr() != self.data.data_ptr():
            self.tensor.data = data
        data.copy_(numbers)


class FrozenCopy(TensorCopy):
    """A copy of a large tensor, or of a parameter that is not probed, such as a parameter of a frozen backbone.

    The parameters may fill the device, so their copies are in host memory. To make new copies for every step would take longer
    than the step, so a copy is used as long as the tensor's bits stay the same. Version counters do not show writes through
    ``.data``, as many updates of a teacher network are.
    """

    def __init__(self, tensor: Tensor, device: str | None = None, owner: Any = None) -> None:
        super().__init__(tensor, device, owner)
        self._device = device
        apart = self.copy is not None and self.copy.device != self.numbers.device
        self._checksum = checksum(self.numbers) if apart else None

    def refreshed(self) -> TensorCopy:
        """This copy, with new numbers if the tensor's have changed; a new copy if the tensor has another storage."""
        if self.is_elsewhere():
            return FrozenCopy(self.tensor, self._device, self.owner)
        if self.is_written():
            super().refreshed()
            self._checksum = None if self._checksum is None else checksum(self.numbers)
        return self

    def restore(self) -> None:
        """Put the numbers back if they have changed."""
        self.rebind()
        if self.is_written():
            super().restore()

    def is_written(self) -> bool:
        """Whether the numbers have changed: compares the bits, or sums over the bits if the copy is on another device."""
        if self._checksum is None:
            return super().is_written()
        return checksum(self.numbers) != self._checksum


class WholeCopy(TensorCopy):
    """A copy of a tensor without strides, such as a sparse tensor, which gets new numbers as a whole."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = self.owner = tensor
        self.is_sharded = False
        self.copy = tensor.detach().clone()

    def refreshed(self) -> TensorCopy:
        """A new copy."""
        return WholeCopy(self.tensor)

    def restore(self) -> None:
        """Give the tensor a copy of its earlier numbers."""
        self.tensor.data = self.copy.clone()  # type: ignore[union-attr]

    def rebind(self) -> None:
        """Do nothing."""

    def is_elsewhere(self) -> bool:
        """False: such a tensor has no storage to compare."""
        return False

    def is_written(self) -> bool:
        """False: only the version counter tells."""
        return False

    def capture(self) -> Any:
        """A copy of the tensor's present numbers."""
        return self.tensor.detach().clone()

    def put(self, state: Any) -> None:
        """Give the tensor the state that :meth:`capture` returned."""
        self.tensor.data = state.clone()


def written(copies: Sequence[TensorCopy]) -> list[TensorCopy]:
    """The copies whose tensors hold other numbers by now; a GPU is waited for once."""
    there = [copy for copy in copies if type(copy) is TensorCopy and copy.copy is not None and copy.numbers.is_cuda]
    pairs = [(copy.numbers, copy.copy) for copy in there if copy.copy is not None]
    differ = [(_as_integers(one) != _as_integers(other)).any() for one, other in pairs]
    known = dict(zip(map(id, there), torch.stack(differ).tolist() if differ else [], strict=True))
    return [copy for copy in copies if (known[id(copy)] if id(copy) in known else copy.is_written())]


def can_be_copied(tensor: Tensor) -> bool:
    """Whether a tensor has numbers that can be copied and written back.

    Args:
        tensor: Any tensor.

    Returns:
        False for a tensor without numbers, and for a tensor of inference mode, such as validation makes, which torch does not
        allow to be written to.
    """
    return not (is_lazy(tensor) or tensor.is_inference() or tensor.is_meta)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are in memory as its strides say."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits, NaN included.

    Args:
        one: Any tensor with strides.
        other: A tensor of the same shape and type, on the same device.

    Returns:
        True if all bits are the same.
    """
    if _COMPARE is not None and one.device.type == "cpu" and _lie_alike(one, other):
        return not _COMPARE(one.data_ptr(), other.data_ptr(), one.nbytes)  # takes a tenth of torch's time
    return torch.equal(_as_integers(one), _as_integers(other))


def all_same_bits(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether tensors hold the same bits as others, one by one: see :func:`same_bits`. A GPU is waited for once.

    Args:
        some: Any tensors with strides.
        others: As many, each of the same shape and type, and on the same device.

    Returns:
        True if all bits are the same.
    """
    pairs = [*zip(some, others, strict=True)]
    if len({one.device for one in some}) != 1 or some[0].device.type == "cpu":
        return all(same_bits(one, other) for one, other in pairs)
    return not bool(torch.stack([(_as_integers(one) != _as_integers(other)).any() for one, other in pairs]).any())


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have their numbers in memory without gaps and in the same order, with no conjugation pending."""
    plain = one.is_contiguous() and other.is_contiguous()
    return plain and not any(tensor.is_conj() or tensor.is_neg() for tensor in (one, other))


def _compare() -> Any:
    """The C library's ``memcmp``; None if it is not found."""
    try:
        compare = ctypes.CDLL(None).memcmp
    except (AttributeError, OSError, TypeError):  # on Windows a library has to be named
        return None
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return compare


_COMPARE = _compare()


def checksum(tensor: Tensor) -> tuple[int, ...]:
    """Sums over a tensor's bits: if the numbers change, the sums change too, but for a rare coincidence.

    Args:
        tensor: Any tensor with strides.

    Returns:
        The sums over all integers, every second and every third integer, so that an exchange of two numbers is seen too.
    """
    bits = _as_integers(tensor).reshape(-1)
    sums = torch.stack([bits[::step].sum(dtype=torch.int64) for step in (1, 2, 3)])
    return tuple(sums.tolist())


def _as_integers(tensor: Tensor) -> Tensor:
    """A tensor's bits, read as the widest possible integers."""
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()
    real = real.detach()
    if real.is_contiguous() and real.nbytes % 8 == 0 and real.storage_offset() * real.element_size() % 8 == 0:
        return real.view(-1).view(torch.int64)
    return real.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()])


def _is_writable(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    return not any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def where(tensor: Tensor) -> int:
    """The address of the storage of a tensor's numbers; 0 if there is no storage.

    Args:
        tensor: Any tensor; for a sharded tensor, the part of this process.

    Returns:
        The address.
    """
    held = local(tensor) if is_sharded(tensor) else tensor
    try:
        return held.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # the tensor has no storage, or none yet
        return 0
