"""The base class of the families of probe directions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError


def check_real(parameters: Sequence[Tensor]) -> None:
    """Refuse parameters along which no directions can be drawn or learned.

    Args:
        parameters: The parameters.

    Raises:
        InvalidArgumentError: If a parameter is not real.
    """
    for parameter in parameters:
        if not parameter.is_floating_point():
            raise InvalidArgumentError(
                f"`parameters` must be real floating-point tensors, got a tensor of type {parameter.dtype}: leave this"
                " parameter out, or hold its real and imaginary parts as two parameters."
            )


class Directions(ABC):
    """A family of probe directions: draws ``q`` directions for a given list of parameters.

    A family holds no tensors and no random state, so one object can serve any number of models and snapshots.
    """

    orthonormal: ClassVar[bool] = False
    """Whether the directions of one draw are orthonormal, which allows at most ``d`` directions."""

    learns: ClassVar[bool] = False
    """Whether the family learns from gradients, through a :meth:`learner`."""

    warmup_batches: int | Literal["auto"] = 0
    """Of how many batches a learner sees the gradients before the first snapshot, without a step; ``"auto"``: of none, if the
    first epoch is long enough to learn from its steps."""

    def draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections:
        """Draw ``count`` directions for ``parameters``.

        Args:
            parameters: The tensors that span the space; only shapes, types, devices and placements are read.
            count: ``q``, at least 1, and at most ``d`` for orthonormal families.
            generator: CPU generator that every random number derives from; the global generator is never touched.

        Returns:
            The directions, in the parameters' types and on their devices. For sharded parameters, each process gets its part of
            the same directions.

        Raises:
            InvalidArgumentError: If there are no parameters, or ``count`` is out of range.
            UnsupportedError: If the parameters are sharded, but not by rows over one group of processes.
        """
        dimension = sum(parameter.numel() for parameter in parameters)
        if dimension == 0:
            raise InvalidArgumentError("`parameters` holds no numbers to perturb: pass at least one trainable parameter.")
        check_real(parameters)
        self.check_count(count, dimension)
        return self._draw([parameter.detach() for parameter in parameters], count, generator)

    def check_count(self, count: int, dimension: int) -> None:
        """Refuse a number of directions that the family cannot draw.

        Args:
            count: ``q``, the number of directions to draw.
            dimension: ``d``, the number of trainable parameters.

        Raises:
            InvalidArgumentError: If ``count`` is below 1, or above ``dimension`` for an orthonormal family.
        """
        if count < 1:
            raise InvalidArgumentError(f"`count`, the number of directions, must be at least 1, got {count}.")
        if self.orthonormal and count > dimension:
            raise InvalidArgumentError(
                f"{type(self).__name__} cannot draw {count} orthonormal directions in a space of {dimension} trainable"
                f" parameters: use at most {dimension} probes, or a family without this limit such as SphereDirections."
            )

    def seeded(self) -> "Directions":
        """The same family, drawing directions that take no memory, if the family can; for directions used once or twice."""
        return self

    def at(self, parameters: Sequence[Tensor], state: Any = None) -> "Directions":
        """The family at a point, for families whose directions depend on the weights.

        Args:
            parameters: The point.
            state: The state of an earlier point, from :meth:`state`; None for the point of ``parameters``.

        Returns:
            The family at the point; the family itself if its directions do not depend on the weights.
        """
        return self

    def state(self) -> Any:
        """The state that the family keeps of its point, as plain types and tensors; None if there is nothing to keep."""
        return None

    def learner(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> Learner:
        """A new learner of directions for ``parameters``; the learner starts from the random directions of :meth:`draw`.

        Args:
            parameters: See :meth:`draw`.
            count: ``q``, the number of directions to learn, until :meth:`Learner.directions` asks for another number.
            generator: CPU generator, in the same state in every process.

        Raises:
            UnsupportedError: If the family does not learn.
        """
        raise UnsupportedError(f"{type(self).__name__} does not learn from gradients: use GradientSubspaceDirections().")

    @abstractmethod
    def _draw(self, parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> ProbeDirections: ...
