"""Random generators that nothing else draws from."""

import torch


def seeded(seed: int) -> torch.Generator:
    """A generator of its own with that seed."""
    return torch.Generator().manual_seed(seed)
