"""Directions along the smallest weights of each tensor are those of the family in the space of these weights."""

import pytest
import torch

from lightning_vamo.core.directions import CoordinateDirections, GradientSubspaceDirections, MaskedDirections
from lightning_vamo.core.directions import masked as module
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from tests.support.points import ALL, DTYPES, PRECISION, each, irregular, noise, similar
from tests.support.problems import seeded
from tests.support.shards import rank_of, shard

SHAPES = [(5, 4), (), (0,), (9,), (2, 1, 3)]


def smallest(parameters, keep):
    """Flags of the smallest weights, by sorting."""
    flags = []
    for parameter in parameters:
        flat = parameter.reshape(-1).abs().double()
        own = torch.zeros(len(flat), dtype=torch.bool)
        own[flat.argsort()[: -(-int(keep * 1000) * len(flat) // 1000)]] = True
        flags.append(own)
    return flags


@pytest.mark.parametrize("chunk", [8, module.CHUNK])
@pytest.mark.parametrize("keep", [0.25, 0.5, 1.0])
@each("family", ALL)
def test_the_directions_are_the_familys_in_the_space_of_the_smallest_weights(family, keep, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    parameters = noise(SHAPES, torch.float64)
    flags = smallest(parameters, keep)
    inside = [torch.zeros(int(own.sum()), dtype=torch.float64) for own in flags]
    drawn = MaskedDirections(family, keep).draw(parameters, 3, seeded(2))
    expected = family.draw(inside, 3, seeded(2))
    assert drawn.dimension == expected.dimension == int(torch.cat(flags).sum())
    dense = drawn.dense(parameters)
    assert torch.equal(dense[:, torch.cat(flags)], expected.dense(inside))
    assert not dense[:, ~torch.cat(flags)].any()


@each("dtype", DTYPES)
@each("family", ALL)
def test_projection_and_subtraction_are_those_of_the_dense_matrix(family, dtype):
    parameters = irregular(dtype)
    drawn = MaskedDirections(family, 0.5).draw(parameters, 2, seeded(2))
    dense = drawn.dense(parameters).double()
    vectors = similar(parameters, 7)
    vectors[1] = None
    flat = torch.cat([torch.zeros(p.numel()) if v is None else v.reshape(-1) for v, p in zip(vectors, parameters, strict=True)])
    flat, tolerance = flat.double(), PRECISION[dtype]
    assert torch.allclose(drawn.project(vectors).double(), dense @ flat, rtol=tolerance, atol=tolerance)
    coefficients = torch.tensor([0.5, -1.5])
    step = coefficients.double() @ dense
    step[20 : 20 + parameters[1].numel()] = 0
    square, product, length = drawn.subtract_(vectors, coefficients)
    left = torch.cat([torch.zeros(p.numel()) if v is None else v.reshape(-1) for v, p in zip(vectors, parameters, strict=True)])
    assert torch.allclose(left.double(), flat - step, rtol=tolerance, atol=tolerance)
    expected = [flat @ flat, flat @ step, step @ step]
    assert [square, product, length] == pytest.approx([float(value) for value in expected], rel=tolerance, abs=tolerance)
    slopes = torch.tensor([1.0, 2.0])
    assert torch.equal(drawn.whiten(slopes), slopes)


def test_a_mask_is_kept_and_taken_up_again():
    parameters = noise(SHAPES)
    family = MaskedDirections(ALL[0], 0.3)
    assert family.state() is None
    here = family.seeded().at(parameters)
    other = [parameter.flip(0) if parameter.ndim else parameter for parameter in parameters]
    again = family.at(other, here.state())
    drawn = [one.draw(other, 2, seeded(1)).dense(other) for one in (here, again, family)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert sum(mask.nbytes for mask in here.state()) <= sum(-(-p.numel() // 8) for p in parameters)


def test_coordinate_wise_estimates_on_a_mask_have_as_many_probes_as_weights_in_it():
    family = MaskedDirections(CoordinateDirections(), 0.5)
    parameters = noise([(8,)])
    assert family.orthonormal
    directions = family.draw(parameters, 4, seeded(0))
    assert directions.count == directions.dimension == 4
    with pytest.raises(InvalidArgumentError, match="at most 4 probes"):
        family.check_count(5, 8)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, True, "half", None])
def test_a_share_that_is_none(keep):
    with pytest.raises(InvalidArgumentError, match=r"`keep` must be above 0 and at most 1, got"):
        MaskedDirections(ALL[0], keep)


@pytest.mark.parametrize("family", [GradientSubspaceDirections(), CoordinateDirections, "sphere"])
def test_a_family_that_cannot_be_restricted(family):
    with pytest.raises(InvalidArgumentError, match="`family` must be a family of directions that does not learn"):
        MaskedDirections(family)


def test_sharded_tensors_are_refused():
    with rank_of(0, 2) as mesh, pytest.raises(UnsupportedError, match="train with DDP"):
        MaskedDirections(ALL[0]).draw([shard(torch.randn(4, 3), mesh)], 1, seeded(0))


def test_blocks_of_coordinates():
    point = [torch.zeros(5), torch.zeros(2, 3)]
    counts = torch.zeros(11)
    for seed in range(600):
        chosen = CoordinateDirections(3).draw(point, 2, seeded(seed)).dense(point).nonzero()[:, 1]
        assert len({0 if i < 3 else 1 if i < 7 else 2 for i in chosen.tolist()}) == 1
        counts[chosen] += 1
    # A block is chosen as often as its size says, so that each coordinate is as likely as the others.
    assert bool(((counts - 1200 / 11).abs() < 5 * (1200 / 11) ** 0.5).all())
    with pytest.raises(InvalidArgumentError, match=r"cannot draw 4 axes from one block.*blocks of 3 .*: use at most 3 probes"):
        CoordinateDirections(3).draw(point, 4, seeded(0))
    for blocks in (0, -1, 1.5, True, None):
        with pytest.raises(InvalidArgumentError, match="`blocks` must be a whole number >= 1"):
            CoordinateDirections(blocks)
