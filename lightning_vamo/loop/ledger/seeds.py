"""Random numbers that depend only on the run's seed and on their purpose."""

import random
from dataclasses import dataclass

import torch


@dataclass
class Seeds:
    """The seeds of a run: the same on every rank, and after a resume.

    Attributes:
        seed: The run's seed; None until the run begins.
    """

    seed: int | None = None

    def of(self, purpose: str) -> int:
        """A seed for one purpose.

        Args:
            purpose: The purpose; different purposes get independent seeds.

        Returns:
            A seed of 63 bits.
        """
        return random.Random(f"{self.seed}: {purpose}").getrandbits(63)


def seeded(seed: int) -> torch.Generator:
    """A new generator with the seed."""
    return torch.Generator().manual_seed(seed)
