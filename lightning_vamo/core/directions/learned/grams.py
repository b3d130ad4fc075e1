"""Inner products between factored directions."""

import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factors import Factors


def grams(one: Factors, other: Factors) -> Tensor:
    """Inner products of factored directions with other factored directions, over this process's part.

    Args:
        one: ``q`` directions.
        other: ``p`` directions in the same layout.

    Returns:
        The share of each parameter in the inner products, shape ``(parameters, q, p)``, float64, on the CPU.
    """
    layout, shape = one.layout, (one.count, one.layout.rank, other.count, one.layout.rank)
    parts: dict[int, Tensor] = {}
    views = zip(one.lefts, one.rights, other.lefts, other.rights, strict=True)
    for matrix, (a, b, c, d) in zip(layout.matrices, views, strict=True):
        product = (a.double() @ c.double().t()) * (b.double() @ d.double().t())
        parts[matrix.position] = product.view(shape).sum(dim=(1, 3))
    sizes = [whole.held for whole in layout.wholes]
    rest = zip(*(torch.split(each.whole.double(), sizes, dim=1) for each in (one, other)), strict=True)
    for whole, (numbers, others) in zip(layout.wholes, rest, strict=True):
        parts[whole.position] = numbers @ others.t()
    return torch.stack([parts[position] for position in sorted(parts)]).cpu()


def normalised(factors: Factors) -> Factors:
    """Scale factored directions to unit norm, in place.

    Args:
        factors: The directions; no direction may be zero.

    Returns:
        The same directions.
    """
    layout = factors.layout
    scales = layout.shards.total(grams(factors, factors).sum(dim=0)).diagonal().rsqrt().to(factors.left)
    factors.left.mul_(scales.repeat_interleave(layout.rank).unsqueeze(1))
    factors.whole.mul_(scales.unsqueeze(1))
    return factors
