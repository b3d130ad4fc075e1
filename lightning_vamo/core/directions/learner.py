"""The base class of learners: a learner finds probe directions in the gradients that training computes anyway."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.slopes import Slopes


class Learner(ABC):
    """Base class of learners, which learn directions in *passes* over mini-batch gradients.

    A pass begins and ends with a call of :meth:`directions`. If every process feeds the same gradients and draws the same
    random numbers, every process gets the same directions, to the bit. For sharded parameters, each process feeds and gets its
    part.

    Attributes:
        current: The directions that :meth:`directions` or :meth:`leading` returned last; None before the first call. The
            correction uses these directions, also after a resume.
        slopes: The slopes of the last gradient along ``current``, so that the correction need not read the gradient again; None
            before the first gradient that was seen with ``current``.
        shares: Estimate of the share of the gradient noise's variance in the span of the first ``1..q`` directions of
            ``current``, shape ``(q,)``, float64, on the CPU, rather too low than too high; None while there is no estimate.
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
            gradients: The gradient of each parameter, neither kept nor changed; ``None`` stands for zeros.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Let the next gradient follow on none: steps went by whose gradients were not seen."""

    @abstractmethod
    def directions(self, count: int, generator: torch.Generator) -> ProbeDirections:
        """End the pass: use the learned directions from now on, and begin the next pass with these directions.

        Args:
            count: ``q``, at least 1. If it is less than before, the leading directions are returned. If it is more, random
                directions are added, from which the next pass learns.
            generator: CPU generator, in the same state in every process; read only if random directions are needed.

        Returns:
            The directions, the leading directions first: :attr:`current`.
        """

    @abstractmethod
    def shares_so_far(self) -> Tensor | None:
        """Estimate :attr:`shares` from the gradients of the present pass, within the pass.

        :attr:`shares` is what the directions of the pass before held, measured when that pass ended.

        Returns:
            See :attr:`shares`, which is returned itself if the pass has too few gradients, or no noise.
        """

    @abstractmethod
    def leading(self, count: int) -> ProbeDirections:
        """Use only the first of the learned directions, if fewer directions are probed than are learned.

        Args:
            count: Number of directions, at least 1 and at most the number that :meth:`directions` returned.

        Returns:
            The directions: :attr:`current` from now on.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything learned so far, even within a pass, as plain types and tensors; for shards, this process's part."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, bit for bit, from a state of :meth:`state_dict`.

        Args:
            state: The state, which must belong to the same parameters.
        """
