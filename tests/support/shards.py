"""Shards without processes."""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_vamo.core.sharding import ShardGroup


@contextmanager
def rank_of(rank, *shape):
    """A mesh as one of its processes sees it; nothing is communicated."""
    world = torch.Size(shape).numel()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    finally:
        dist.destroy_process_group()


def shard(tensor, mesh):
    """What `fully_shard` makes of a parameter."""
    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    parts = torch.chunk(tensor, mesh.size(-1)) if len(tensor) else ()
    rank = mesh.get_local_rank(mesh.ndim - 1)
    part = parts[rank] if rank < len(parts) else tensor[:0]
    size = {"shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(part.clone(), mesh, placements, run_check=False, **size)


def on_ranks(world, work, monkeypatch):
    """Call `work(mesh)` for every rank, and again with the sums of what they gave until the second sum too is right."""
    given = []
    for _ in range(3):
        sums, given, results = given, [], []
        for rank in range(world):
            shares = []

            def total(self, values, shares=shares, sums=sums):
                shares.append(values.clone())
                return values if self.group is None or not sums else sum(others[len(shares) - 1] for others in sums)

            monkeypatch.setattr(ShardGroup, "total", total)
            with rank_of(rank, world) as mesh:
                results.append(work(mesh))
            given.append(shares)
    return results
