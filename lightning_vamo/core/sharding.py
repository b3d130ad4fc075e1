"""The numbers of a sharded parameter in this process: FSDP2 keeps some rows of each parameter in each process, as a DTensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_vamo.core.small import Small, small, tensor_of
from lightning_vamo.errors import UnsupportedError

if dist.is_available():
    from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class ShardGroup:
    """The processes that together hold a list of tensors.

    Attributes:
        group: The process group, or None if this process holds everything.
        device: Kind of device that the group communicates on.
    """

    group: Any = None
    device: str = "cpu"

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the group; the input itself if this process holds everything.

        Args:
            values: The share of this process.

        Returns:
            The sum, on the device of ``values``, the same in every process of the group.
        """
        if self.group is None:
            return values
        shared = values.to(self.device, copy=True)
        dist.all_reduce(shared, group=self.group)
        return shared.to(values.device)

    def total_small(self, values: Small) -> Small:
        """See :meth:`total`; for numbers of :mod:`~lightning_vamo.core.small` arithmetic."""
        return values if self.group is None else small(self.total(tensor_of(values)))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds, as a detached view."""
    if type(tensor) is Tensor and not tensor.requires_grad:
        return tensor  # the case of most gradients: a detached view takes as long as the sum of a small gradient
    if is_sharded(tensor):
        with torch.no_grad():
            tensor = tensor.to_local()  # type: ignore[attr-defined]
    return tensor.detach()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return dist.is_available() and isinstance(tensor, DTensor)


def first_number(tensor: Tensor) -> int:
    """Position of this process's first number in the whole tensor, flattened row by row.

    Args:
        tensor: Any tensor; for a tensor that is not sharded, the position is 0.

    Returns:
        The position; the numbers of :func:`local` follow from there in order.

    Raises:
        UnsupportedError: If this process's numbers are not adjacent.
    """
    axis = _sharded_axis(tensor)
    if axis is None:
        return 0
    # As `torch.chunk` cuts: equal shares, rounded up; the last shares may be smaller or empty.
    rows, mesh = tensor.shape[0], tensor.device_mesh  # type: ignore[attr-defined]
    share = -(-rows // mesh.size(axis))
    first: int = min(rows, mesh.get_local_rank(axis) * share)
    return first * (tensor.numel() // max(1, rows))


def shard_group(tensors: Sequence[Tensor]) -> ShardGroup:
    """The processes over which tensors are sharded.

    Args:
        tensors: Parameters, or their gradients.

    Returns:
        The group over which norms and inner products have to be summed.

    Raises:
        UnsupportedError: If the tensors are sharded in different ways, or not by rows over one dimension of the mesh.
    """
    groups: dict[tuple[int, ...], ShardGroup] = {}
    for tensor in tensors:
        axis = _sharded_axis(tensor)
        if axis is None:
            groups[()] = ShardGroup()
        else:
            mesh = tensor.device_mesh  # type: ignore[attr-defined]
            group = mesh.get_group(axis)
            groups[tuple(dist.get_process_group_ranks(group))] = ShardGroup(group, mesh.device_type)
    if len(groups) > 1:
        raise UnsupportedError(
            "Some trainable parameters are sharded over other processes than the rest, or not at all: apply `fully_shard` to"
            " the whole model, over one mesh. It does not average the gradients of the parameters that it leaves out."
        )
    return next(iter(groups.values()), ShardGroup())


def _sharded_axis(tensor: Tensor) -> int | None:
    """The dimension of the device mesh that shards a tensor's rows; None if each process holds the whole tensor."""
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    axes = [axis for axis, kind in enumerate(placements) if mesh.size(axis) > 1 and not kind.is_replicate()]
    if not axes:
        return None
    kind = placements[axes[0]]
    if len(axes) > 1 or type(kind) is not Shard or kind.dim != 0:
        raise UnsupportedError(
            f"A parameter is placed as {tuple(placements)} on a mesh of shape {tuple(mesh.shape)}, but only parameters that are"
            " sharded by rows are supported: use `fully_shard` over the data-parallel mesh, without tensor parallelism"
            " (tensor_parallel_size=1) and without `shard_placement_fn`."
        )
    return axes[0]
