"""Copies of tensors that know whether their originals were written to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_vamo.core.sharding import local


class TensorCopy:
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
        """Put the numbers back, and the storage they were in."""
        if self._replaced():
            self._tensor.data = self._data
        if self._copy is not None:
            self._local.copy_(self._copy)
            self._version = self._tensor._version

    def restore_if_written(self) -> None:
        """Put the numbers back if the tensor's version or storage is another."""
        if self._tensor._version != self._version or self._replaced():
            self.restore()

    def _replaced(self) -> bool:
        return local(self._tensor.data).data_ptr() != self._local.data_ptr()


class FrozenCopy(TensorCopy):
    """A parameter that is not probed, most often one of a frozen backbone.

    That may fill the device, so the copy waits in host memory. To make it anew for every step would take longer than the step:
    the copy serves for as long as a checksum of the parameter's bits stays the same. Version counters do not tell of writes
    through ``.data``, as a teacher's update often is.
    """

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor, "cpu")
        self._checksum = checksum(self._local)

    @classmethod
    def of(cls, tensor: Tensor, last: Mapping[int, "FrozenCopy"]) -> "FrozenCopy":
        """The parameter's copy among ``last`` if it still holds, else a new one."""
        other = last.get(id(tensor))
        if other is None or other._tensor is not tensor or other._replaced():
            return cls(tensor)
        if checksum(other._local) != other._checksum:
            return cls(tensor)
        other._version = tensor._version
        return other

    def restore(self) -> None:
        """Put the numbers back if the checksum is another."""
        if self._replaced() or checksum(self._local) != self._checksum:
            super().restore()
        self._version = self._tensor._version


def checksum(tensor: Tensor) -> int:
    """A sum over a tensor's bits, which a change of its numbers changes, but for a coincidence."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[real.element_size()]
    return int(real.detach().contiguous().view(whole).sum(dtype=torch.int64))
