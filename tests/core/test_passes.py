"""The sums of a pass of power iteration: kept back for many gradients, they are what adding each at once gives."""

import pytest
import torch

from lightning_vamo.core.directions import GradientSubspaceDirections
from lightning_vamo.core.directions.learned import passes
from tests.support.points import noise
from tests.support.problems import seeded


def learned(many, monkeypatch, rank, count):
    """A learner that has seen nine gradients, of which the fourth is not finite; ``many`` are kept back at a time."""
    monkeypatch.setattr(passes, "_MANY", many)
    parameters = [torch.zeros(6, 5), torch.zeros(4)]
    learner = GradientSubspaceDirections(rank=rank).learner(parameters, count, seeded(0))
    generator = seeded(1)
    seen = []
    for number in range(9):
        gradients = [torch.randn(each.shape, generator=generator) for each in parameters]
        if number == 3:
            gradients[0][0, 0] = torch.inf
        learner.observe(gradients)
        seen.append(torch.from_numpy(learner._last_slopes.copy()))
    return learner, torch.stack(seen)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rank", [1, None])
def test_it_does_not_matter_when_the_moments_are_added_up(monkeypatch, rank, count):
    states = [learned(many, monkeypatch, rank, count)[0].state_dict() for many in (1, 2, 7, 256)]
    assert all(torch.equal(state["_moments"], states[0]["_moments"]) for state in states)
    assert all(state["_seen"] == 8 and state["_differences"] == 6 for state in states)


@pytest.mark.parametrize("rank", [1, None])
def test_the_moments_are_sums_over_slopes(monkeypatch, rank):
    learner, slopes = learned(4, monkeypatch, rank, 2)
    total, squares, differences = learner.state_dict()["_moments"]
    known = torch.cat([slopes[:3], slopes[4:]])  # zeros stand for the slopes of the gradient that is not finite
    changes = torch.cat([slopes[1:3] - slopes[:2], slopes[5:] - slopes[4:-1]])
    torch.testing.assert_close(total, known.sum(0))
    torch.testing.assert_close(squares, known.square().sum(0))
    torch.testing.assert_close(differences, changes.square().sum(0) / 2)


@pytest.mark.parametrize("rank", [1, None])
def test_a_pass_without_noise_says_nothing_of_shares(rank):
    parameters = noise([(6, 5), (4,)])
    learner = GradientSubspaceDirections(rank=rank).learner(parameters, 2, seeded(0))
    for start in (0, 4):  # the second pass measures the directions that the first has learned
        for seed in range(start, start + 4):
            learner.observe(noise([(6, 5), (4,)], seed=seed))
        learner.directions(2, seeded(1))
    known = learner.shares
    assert known is not None
    for _ in range(4):
        learner.observe([torch.zeros_like(parameter) for parameter in parameters])
    assert learner.shares_so_far() is known
    learner.directions(2, seeded(1))
    assert torch.equal(learner.shares, known)
