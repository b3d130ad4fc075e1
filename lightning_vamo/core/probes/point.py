"""A point: a copy of the weights, from which the weights are moved and to which they return bit for bit."""

from collections.abc import Sequence

from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.sharding import local


class Point:
    r"""A copy of the parameters :math:`x`, from which the parameters are moved, and to which they are restored bit for bit.

    Use the point as a context manager around the evaluations: at the end of the context, even after an error, the parameters
    hold exactly the bits that they held at its beginning.

    Args:
        parameters: The live parameters, which are perturbed in place; the copy shares no storage with them. Of a sharded
            parameter, the part of this process is copied and perturbed.
        origin: The copy of an earlier point, ``point.origin``, to which :meth:`restore` then returns; by default a new copy of
            the parameters.
    """

    def __init__(self, parameters: Sequence[Tensor], origin: Sequence[Tensor] | None = None) -> None:
        self.parameters = [local(parameter) for parameter in parameters]
        self.origin = [parameter.clone() for parameter in self.parameters] if origin is None else origin
        """The copy."""
        self._step: tuple[ProbeDirections, int, float] | None = None
        # The place of the parameters: the step away from the copy, the directions of the step, and the parameters' versions.
        self._along: ProbeDirections | None = None
        self._versions = self._seen() if origin is None else None

    def _seen(self) -> list[int] | None:
        """Version counters that change when other code writes to the parameters; None if there are no counters."""
        if any(parameter.is_inference() for parameter in self.parameters):
            return None
        return [parameter._version for parameter in self.parameters]

    def __enter__(self) -> "Point":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Set the parameters back to the point."""
        self._step = None
        for parameter, origin in zip(self.parameters, self.origin, strict=True):
            parameter.copy_(origin)
        self._along, self._versions = None, self._seen()

    def perturb(self, directions: ProbeDirections, index: int, distance: float) -> None:
        r"""Set the parameters to :math:`x + s\,u_j`.

        Args:
            directions: The probe directions.
            index: Number of the direction, ``0 <= index < q``.
            distance: The step :math:`s`, in units of parameter norm.
        """
        self._step = directions, index, distance
        known = self._versions is not None and self._versions == self._seen()
        near = known and (self._along is None or self._along is directions)
        directions.move(self.parameters, self.origin, index, distance, near=near)
        self._along, self._versions = directions, self._seen()

    def renew(self) -> None:
        """Set the parameters to the last point again, after other code has written to them."""
        self._versions = None  # the version counters may not show the write
        if self._step is None:
            self.restore()
        else:
            self.perturb(*self._step)
