"""Few weights are moved with a copy and a direction in memory: to the same points, and back to the bit."""

import pytest
import torch

from lightning_vamo.core.directions import CoordinateDirections, GaussianDirections, MaskedDirections
from lightning_vamo.core.directions.random import streams
from lightning_vamo.core.gradient import kept
from lightning_vamo.core.gradient.excursion import Excursion
from lightning_vamo.core.gradient.kept import KeptExcursion, excursion
from lightning_vamo.core.gradient.update import Rate, descend
from tests.support.bits import same_bits
from tests.support.points import ALL, each, layouts, noise
from tests.support.problems import seeded

MOVING = [*ALL, CoordinateDirections(2), *(MaskedDirections(family, 0.5) for family in ALL)]


@pytest.mark.parametrize("chunk", [4, streams.CHUNK])
@each("dtype", [torch.float64, torch.float32, torch.bfloat16])
@each("family", MOVING)
def test_it_goes_where_move_goes_and_comes_back(family, dtype, chunk, monkeypatch):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    parameters = noise([(6, 5), (9,), (1,)], dtype)
    before = [parameter.clone() for parameter in parameters]
    directions = family.draw(parameters, 2, seeded(4))
    away = excursion(parameters, directions)
    assert type(away) is KeptExcursion
    for index, distance in ((0, 0.3), (0, -0.3), (1, -0.3), (1, [0.3] * 3), (0, 0.1)):
        away.go(index, distance)
        expected = [torch.empty_like(origin) for origin in before]
        directions.move(expected, before, index, distance if isinstance(distance, float) else distance[0])
        tolerance = 4 * torch.finfo(dtype).eps
        assert all(torch.allclose(*pair, rtol=tolerance, atol=tolerance) for pair in zip(parameters, expected, strict=True))
        assert not same_bits(parameters, before)
    assert away.away
    assert away.bytes == sum(parameter.nbytes for parameter in parameters)
    away.back()
    assert not away.away
    assert same_bits(parameters, before)


@each("dtype", [torch.float64, torch.bfloat16])
@each("family", MOVING)
@pytest.mark.parametrize("count", [1, 3])
def test_a_step_from_there_is_that_of_an_excursion_without_copies(family, dtype, count):
    found = []
    for kind in (Excursion, KeptExcursion):
        parameters = noise([(6, 5), (9,), (1,)], dtype)
        directions = family.draw(parameters, count, seeded(5))
        away = kind(parameters, directions)
        away.go(count - 1, 0.2)
        descend(parameters, directions, [0.5, -2.0, 1.0][:count], [Rate(0.1, 0.3)] * 2 + [Rate(0.7)], away)
        assert not away.away
        found.append(parameters)
    tolerance = 4 * torch.finfo(dtype).eps
    assert all(torch.allclose(one, other, rtol=tolerance, atol=tolerance) for one, other in zip(*found, strict=True))


def test_each_parameter_may_go_a_distance_of_its_own_and_stay_there():
    parameters = noise([(4,), (3,)], torch.float64)
    before = [parameter.clone() for parameter in parameters]
    directions = GaussianDirections("seeded").draw(parameters, 1, seeded(0))
    away = excursion(parameters, directions)
    away.go(0, [0.5, 0.25])
    dense = directions.dense(before)[0]
    expected = torch.cat(before) + torch.cat([dense[:4] * 0.5, dense[4:] * 0.25])
    assert torch.allclose(torch.cat(parameters), expected, rtol=0, atol=1e-12)
    there = [parameter.clone() for parameter in parameters]
    away.stay()
    away.back()
    assert same_bits(parameters, there)
    away.go(0, 1.0)
    away.back()
    assert same_bits(parameters, there)


def test_a_direction_is_drawn_once(monkeypatch):
    parameters = noise([(4,), (3,)])
    directions = GaussianDirections("seeded").draw(parameters, 1, seeded(0))
    drawn, parts = [], directions.parts
    monkeypatch.setattr(directions, "parts", lambda index: (drawn.append(index), parts(index))[1])
    away = excursion(parameters, directions)
    away.go(0, 0.1)
    away.go(0, -0.1)
    descend(parameters, directions, [1.0], [Rate(0.1)] * 2, away)
    assert drawn == [0]


def test_many_weights_and_those_that_do_not_lie_in_order_are_not_copied(monkeypatch):
    def kind(parameters):
        return type(excursion(parameters, GaussianDirections("seeded").draw(parameters, 1, seeded(0))))

    assert kind(layouts(torch.float32)["irregular"]) is Excursion
    monkeypatch.setattr(kept, "FEW", 11)
    assert kind(noise([(4, 2), (3,)])) is KeptExcursion
    assert kind(noise([(4, 2), (4,)])) is Excursion
