"""Sharded parameters without processes: each rank's part is computed in turn, with sums over the ranks put in by hand."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

from lightning_vamo.core.directions import GaussianDirections, OrthonormalDirections, SphereDirections
from lightning_vamo.core.directions.random import streams
from lightning_vamo.core.probes.point import Point
from lightning_vamo.core.probes.radius import auto_mu
from lightning_vamo.core.sharding import ShardGroup, first_number, local, shard_group
from lightning_vamo.errors import UnsupportedError
from tests.support.points import ALL as FAMILIES
from tests.support.problems import seeded
from tests.support.shards import on_ranks, rank_of, shard

SCALED_BY_NORMS = (SphereDirections, OrthonormalDirections)  # sums over the ranks, which round as they are split


SHAPES = [(5, 3), (1,), (7, 2, 2), (0, 3), (2,), (3, 1)]


def point(seed=1, dtype=torch.float64):
    return [torch.randn(shape, generator=seeded(seed), dtype=torch.float64).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("chunk", [4, 2**18])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}-{getattr(family, 'storage', '')}")
def test_shards_together_are_the_unsharded_directions(family, world, chunk, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    points, vectors = point(), point(seed=2)
    coefficients = torch.tensor([0.5, -1.0, 2.0])
    whole = family.draw(points, 3, seeded(0))
    moved, changed = [torch.empty_like(p) for p in points], [vector.clone() for vector in vectors]
    whole.move(moved, points, 1, 0.25)
    moments = whole.subtract_(changed, coefficients)

    def work(mesh):
        held = [shard(p, mesh) for p in points]
        drawn = family.draw(held, 3, seeded(0))
        assert drawn.dimension == whole.dimension
        ends, rests = [shard(p, mesh) for p in points], [shard(vector, mesh) for vector in vectors]
        drawn.move(ends, held, 1, 0.25)
        projected = drawn.project(rests)
        return [local(p) for p in ends], projected, drawn.subtract_(rests, coefficients), [local(r) for r in rests]

    ranks = on_ranks(world, work, monkeypatch)
    tolerance = {"rtol": 1e-13, "atol": 1e-14} if isinstance(family, SCALED_BY_NORMS) else {"rtol": 0, "atol": 0}
    for position, (end, rest) in enumerate(zip(moved, changed, strict=True)):
        torch.testing.assert_close(torch.cat([rank[0][position] for rank in ranks]), end, **tolerance)
        torch.testing.assert_close(torch.cat([rank[3][position] for rank in ranks]), rest, rtol=1e-13, atol=1e-14)
    for rank in ranks:
        torch.testing.assert_close(rank[1], whole.project(vectors))
    torch.testing.assert_close(sum(rank[2] for rank in ranks), moments)


@pytest.mark.parametrize("storage", ["stored", "seeded"])
def test_a_rank_keeps_and_draws_its_part_alone(storage, monkeypatch):
    drawn_sizes = []

    class Watched(GaussianDirections):
        def sample(self, size, generator, dtype):
            drawn_sizes.append(size)
            return super().sample(size, generator, dtype)

    monkeypatch.setattr(streams, "CHUNK", 10)
    with rank_of(3, 5) as mesh:
        parameter = shard(torch.zeros(100, 5), mesh)
        drawn = Watched(storage).draw([parameter], 2, seeded(0))
        drawn.move([parameter], [shard(torch.ones(100, 5), mesh)], 0, 1.0)
        drawn.subtract_([parameter], torch.ones(2))
        assert local(parameter).shape == (20, 5)
    assert sum(drawn_sizes) == (2 * 100 if storage == "stored" else 3 * 100)
    kept = sum(rows.numel() for rows in getattr(drawn, "rows", ()))
    assert kept == (2 * 100 if storage == "stored" else 0)


def test_the_radius_and_the_snapshot_of_sharded_parameters(monkeypatch):
    points = point()

    def work(mesh):
        held = [shard(p, mesh) for p in points]
        radius = auto_mu(held)
        with Point(held) as snapshot:
            for part in snapshot.parameters:
                part.add_(1)
            changed = [local(p).clone() for p in held]
        return radius, changed, [local(p) for p in held]

    for radius, _, _ in (ranks := on_ranks(3, work, monkeypatch)):
        assert radius == pytest.approx(auto_mu(points), rel=1e-14)
    for position, whole in enumerate(points):
        assert torch.equal(torch.cat([rank[1][position] for rank in ranks]), whole + 1)
        assert torch.equal(torch.cat([rank[2][position] for rank in ranks]), whole)


def test_a_hybrid_mesh_holds_a_copy_of_everything_in_each_row():
    with rank_of(4, 2, 3) as mesh:
        parameter = shard(torch.arange(14.0).view(7, 2), mesh)
        assert first_number(parameter) == 6
        assert local(parameter).flatten().tolist() == [6, 7, 8, 9, 10, 11]
        assert dist.get_process_group_ranks(shard_group([parameter]).group) == [3, 4, 5]


def test_a_mesh_dimension_of_one_process_splits_nothing():
    with rank_of(0, 1) as mesh:
        column = DTensor.from_local(torch.zeros(2, 3), mesh, [Shard(1)], run_check=False)
        assert first_number(column) == 0
        assert shard_group([column, torch.zeros(2)]) == ShardGroup()


def test_what_is_not_sharded_by_rows_is_refused():
    with rank_of(0, 2, 2) as mesh:
        whole = torch.zeros(4, 4)
        both = DTensor.from_local(whole, mesh, [Shard(0), Shard(1)], run_check=False)
        column = DTensor.from_local(whole, mesh["shard"], [Shard(1)], run_check=False)
        for parameter in (both, column):
            with pytest.raises(UnsupportedError, match=r"Shard\(dim=1\).*tensor_parallel_size=1"):
                SphereDirections().draw([parameter], 1, seeded(0))
        row = DTensor.from_local(whole, mesh["shard"], [Shard(0)], run_check=False)
        other = DTensor.from_local(whole, mesh["replicate"], [Shard(0)], run_check=False)
        for others in (whole, other):
            with pytest.raises(UnsupportedError, match="apply `fully_shard` to the whole model"):
                SphereDirections().draw([row, others], 1, seeded(0))


def test_the_streams_of_a_draw_never_coincide():
    for seed in (0, 2**32 - 5, 2**63 - 2):
        seeds = [streams.stream_seed(seed, stream) for stream in range(50_000)]
        assert len({number & 2**32 - 1 for number in seeds}) == 50_000  # all that the CPU generator reads
        assert max(seeds) < 2**63
        assert min(seeds) >= 0
    bits = torch.tensor(seeds)[:, None] >> torch.arange(32) & 1
    flips = (bits[1:] != bits[:-1]).double().mean(dim=0)
    assert bool(((flips - 0.5).abs() < 0.02).all())
