"""A learner that does not see all steps: differences need neighbours."""

import pytest
import torch

from lightning_vamo.core.directions import GradientSubspaceDirections


@pytest.mark.parametrize("rank", [None, 1])
def test_gradients_on_both_sides_of_an_interruption_are_not_neighbours(rank):
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.zeros(5, 4), torch.zeros(3)]
    family = GradientSubspaceDirections(rank)
    one, other = (family.learner(parameters, 2, torch.Generator().manual_seed(1)) for _ in range(2))
    noise = [[torch.randn(5, 4, generator=generator), torch.randn(3, generator=generator)] for _ in range(24)]
    for step, gradient in enumerate(noise):
        if step == 12:
            # The mean gradient is far away by now: its change would be all that is learned.
            noise[12:] = [[part + 100 for part in late] for late in noise[12:]]
            gradient = noise[12]
            one.interrupt()
        one.observe(gradient)
        other.observe(gradient)
    drift = torch.cat([torch.ones(20), torch.ones(3)])
    drift /= drift.norm()

    def along(learner):
        dense = learner.directions(2, torch.Generator().manual_seed(2)).dense(parameters)
        return float((dense @ drift).abs().max())

    assert along(other) > 0.9
    assert along(one) < 0.8
