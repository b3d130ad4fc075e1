"""The base class of learners: a learner finds probe directions in the gradients that training computes anyway."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.slopes import Slopes


class Learner(ABC):
    """Learns the directions of one list of parameters, a *pass* over mini-batch gradients at a time.

    A pass lies between two calls of :meth:`directions`. Whatever is fed and drawn is to be the same in every process; then so
    are the directions, to the bit. Of sharded parameters each process feeds and gets its part.

    Attributes:
        current: The directions that :meth:`directions` or :meth:`leading` gave last, to correct gradients with and, after a
            resume, to do so again; None before.
        slopes: What the last gradient is along ``current``, as its ``measure`` gives it, for the correction not to read the
            gradient again; None before the first gradient that was seen with ``current``.
        shares: Estimate of the share of the gradient noise's variance in the span of the first ``1..q`` of ``current``, shape
            ``(q,)``, float64, on the CPU, rather too low than too high; None while there is none.
    """

    current: ProbeDirections | None
    slopes: Slopes | None
    shares: Tensor | None

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the learner has seen enough gradients to give directions that are better than random."""

    @abstractmethod
    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """Learn from one mini-batch gradient: uncorrected, averaged over the ranks, not scaled for half precision.

        Args:
            gradients: Of the parameters' shapes, neither kept nor changed; ``None`` stands for zeros.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Let the next gradient follow on none: steps went by whose gradients were not seen."""

    @abstractmethod
    def directions(self, count: int, generator: torch.Generator) -> ProbeDirections:
        """End the pass: use the directions that it has learned, and begin the next pass from these directions.

        Args:
            count: ``q``, at least 1. If it is less than before, the leading directions are given; if more, random ones are
                added, which the next pass learns.
            generator: CPU generator, in the same state in every process; read only where random directions are needed.

        Returns:
            The directions, leading ones first: :attr:`current`.
        """

    @abstractmethod
    def leading(self, count: int) -> ProbeDirections:
        """Use only the first directions that :meth:`directions` gave: fewer are probed than are learned.

        Args:
            count: How many, at least 1 and at most as many as were given.

        Returns:
            The directions: :attr:`current` from now on.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that was learned, also in mid-pass: plain types and tensors; this process's part of sharded parameters."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from a state of :meth:`state_dict`.

        Args:
            state: What it returned, for the same parameters.
        """
