"""Gradients to learn directions from."""

import torch

from tests.support.problems import seeded


def gradients(shapes, number, seed=3, dtype=torch.float64):
    """Gradients whose noise has a decaying spectrum around a mean that is not zero."""
    generator = seeded(seed)

    def normal(size):
        return [torch.randn((*size, *shape), generator=generator, dtype=torch.float64) for shape in shapes]

    mean, axes = normal(()), normal((10,))
    weights = torch.randn(number, 10, generator=generator, dtype=torch.float64) * 0.6 ** torch.arange(10)
    steps = [[m + torch.tensordot(row, axis, dims=1) for m, axis in zip(mean, axes, strict=True)] for row in weights]
    return [[part.to(dtype) for part in step] for step in steps]


def fed(family, points, steps, count=3, passes=1):
    """A learner that has seen `passes` passes, and the directions that the last one gave."""
    learner, generator = family.learner(points, count, seeded(0)), seeded(1)
    size = len(steps) // passes
    for number in range(passes):
        for step in steps[number * size : (number + 1) * size]:
            learner.observe(step)
        directions = learner.directions(count, generator)
    return learner, directions
