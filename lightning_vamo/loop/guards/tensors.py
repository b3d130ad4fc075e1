"""Copies of tensors that know whether their originals were written to."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_vamo.core.sharding import is_sharded, local

SMALL = 2**16
"""Bytes up to which a tensor is copied anew for each state, which takes no longer than to see whether an old copy holds."""

FEW = 2**24
"""Bytes of parameters up to which they are copied on the GPU that they are on, where a copy takes next to no time."""


class Place:
    """A tensor, and the storage that its numbers are in.

    Args:
        tensor: The tensor.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        # Holds on to the storage: a step may give the tensor another one, as in `teacher.data = ...`. What is written to it
        # leaves the tensor's version counter alone, as it must: a graph that the user keeps may have saved the tensor.
        self.data = tensor.data
        self.is_sharded = is_sharded(tensor)
        self.numbers = local(self.data) if self.is_sharded else self.data

    def rebind(self) -> None:
        """Put the tensor back into its storage."""
        if self.is_elsewhere():
            self.tensor.data = self.data

    def is_elsewhere(self) -> bool:
        """Whether the tensor has got another storage, or shows other numbers of the same one."""
        held, numbers = local(self.tensor.data) if self.is_sharded else self.tensor, self.numbers
        return held.data_ptr() != numbers.data_ptr() or held.shape != numbers.shape or held.stride() != numbers.stride()


class TensorCopy(Place):
    """A tensor and its numbers.

    Args:
        tensor: The tensor.
        device: Where the copy is to be; by default where the tensor is.
        owner: Whose numbers they are, if the tensor only stands for them; by default the tensor itself.
    """

    def __init__(self, tensor: Tensor, device: str | None = None, owner: Any = None) -> None:
        super().__init__(tensor)
        self.owner = tensor if owner is None else owner
        # Nothing can write to a tensor that was expanded, and nothing can be copied into it.
        self.copy = self.numbers.to(device, copy=True) if _is_writable(self.numbers) else None

    def restore(self) -> None:
        """Put the numbers back, and the storage they were in."""
        self.rebind()
        if self.copy is not None:
            self.numbers.copy_(self.copy)

    def is_written(self) -> bool:
        """Whether the numbers are others; this reads all of them."""
        return self.copy is not None and not same_bits(self.numbers, self.copy)

    def refreshed(self) -> "TensorCopy":
        """A copy of the tensor as it is now: this one, with other numbers in it."""
        if self.copy is not None:
            self.copy.copy_(self.numbers)
        return self

    def capture(self) -> Any:
        """What is in the tensor now, and the storage that it is in."""
        return self.tensor.data, self.tensor.data.clone()

    def put(self, state: Any) -> None:
        """Give the tensor what :meth:`capture` gave."""
        data, numbers = state
        if self.is_elsewhere() or data.data_ptr() != self.data.data_ptr():
            self.tensor.data = data
        data.copy_(numbers)


class FrozenCopy(TensorCopy):
    """A large tensor, or a parameter that is not probed, most often one of a frozen backbone.

    The parameters may fill the device, so their copies wait in host memory. To make them anew for every step would take longer
    than the step: a copy serves for as long as the tensor's bits stay the same. Version counters do not tell of writes through
    ``.data``, as a teacher's update often is.
    """

    def __init__(self, tensor: Tensor, device: str | None = None, owner: Any = None) -> None:
        super().__init__(tensor, device, owner)
        self._device = device
        apart = self.copy is not None and self.copy.device != self.numbers.device
        self._checksum = checksum(self.numbers) if apart else None

    def refreshed(self) -> TensorCopy:
        """The copy itself, with other numbers in it if it no longer holds, or a new one if the tensor has another storage."""
        if self.is_elsewhere():
            return FrozenCopy(self.tensor, self._device, self.owner)
        if self.is_written():
            super().refreshed()
            self._checksum = None if self._checksum is None else checksum(self.numbers)
        return self

    def restore(self) -> None:
        """Put the numbers back if they are others."""
        self.rebind()
        if self.is_written():
            super().restore()

    def is_written(self) -> bool:
        """Whether the numbers are others: by the bits, or a sum over them where the copy is on another device."""
        if self._checksum is None:
            return super().is_written()
        return checksum(self.numbers) != self._checksum


class WholeCopy(TensorCopy):
    """A tensor without strides, such as a sparse one: it has no storage to hold on to, and gets a new one if written to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = self.owner = tensor
        self.is_sharded = False
        self.copy = tensor.detach().clone()

    def refreshed(self) -> TensorCopy:
        """A new copy."""
        return WholeCopy(self.tensor)

    def restore(self) -> None:
        """Give the tensor a copy of what was in it."""
        self.tensor.data = self.copy.clone()  # type: ignore[union-attr]

    def rebind(self) -> None:
        """Do nothing."""

    def is_elsewhere(self) -> bool:
        """False: nothing tells."""
        return False

    def is_written(self) -> bool:
        """False: only the version counter tells."""
        return False

    def capture(self) -> Any:
        """A copy of what is in the tensor now."""
        return self.tensor.detach().clone()

    def put(self, state: Any) -> None:
        """Give the tensor what :meth:`capture` gave."""
        self.tensor.data = state.clone()


def written(copies: Sequence[TensorCopy]) -> list[TensorCopy]:
    """The copies whose tensors hold other numbers by now; a GPU is waited for once."""
    there = [copy for copy in copies if type(copy) is TensorCopy and copy.copy is not None and copy.numbers.is_cuda]
    pairs = [(copy.numbers, copy.copy) for copy in there if copy.copy is not None]
    differ = [(_as_integers(one) != _as_integers(other)).any() for one, other in pairs]
    known = dict(zip(map(id, there), torch.stack(differ).tolist() if differ else [], strict=True))
    return [copy for copy in copies if (known[id(copy)] if id(copy) in known else copy.is_written())]


def can_be_copied(tensor: Tensor) -> bool:
    """Whether a tensor has numbers of its own that can be copied, and written back.

    Args:
        tensor: Any tensor.

    Returns:
        False for those that have no numbers yet, and for those that validation has made in inference mode, which torch does not
        let anyone write to.
    """
    return not (is_lazy(tensor) or tensor.is_inference() or tensor.is_meta)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers lie in memory as its strides say."""
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
        return not _COMPARE(one.data_ptr(), other.data_ptr(), one.nbytes)  # by a tenth of the time that torch takes
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
    """Whether two tensors lie in memory number by number, in the same order, without a conjugation still to be done."""
    plain = one.is_contiguous() and other.is_contiguous()
    return plain and not any(tensor.is_conj() or tensor.is_neg() for tensor in (one, other))


def _compare() -> Any:
    """The C library's ``memcmp``; None where it is not found."""
    try:
        compare = ctypes.CDLL(None).memcmp
    except (AttributeError, OSError, TypeError):  # on Windows a library has to be named
        return None
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    return compare


_COMPARE = _compare()


def checksum(tensor: Tensor) -> tuple[int, ...]:
    """Sums over a tensor's bits, which a change of its numbers changes, but for a coincidence.

    Args:
        tensor: Any tensor with strides.

    Returns:
        The sum over all, every second and every third integer, so that an exchange of numbers is seen too.
    """
    bits = _as_integers(tensor).reshape(-1)
    sums = torch.stack([bits[::step].sum(dtype=torch.int64) for step in (1, 2, 3)])
    return tuple(sums.tolist())


def _as_integers(tensor: Tensor) -> Tensor:
    """A tensor's bits, as the widest integers that they can be read as."""
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
    """The address of the storage that a tensor's numbers are in; 0 if there is none.

    Args:
        tensor: Any tensor; of a sharded one, the part that this process holds counts.

    Returns:
        The address.
    """
    held = local(tensor) if is_sharded(tensor) else tensor
    try:
        return held.untyped_storage().data_ptr()
    except (RuntimeError, ValueError):  # it has no storage, or none yet
        return 0
