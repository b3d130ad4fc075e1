"""A copy of the weights: weights are moved away from the copy, and restored bit for bit."""

from collections.abc import Sequence

from torch import Tensor

from lightning_vamo.core.directions.base import ProbeDirections
from lightning_vamo.core.sharding import local


class Point:
    r"""A copy of the parameters :math:`x`, from which the parameters are moved, and to which they are restored bit for bit.

    Use it as a context manager around the evaluations: on leaving, also through an error, the parameters hold exactly the
    bits that they held on entering.

    Args:
        parameters: The live parameters. They are perturbed in place; the copy shares no storage with them. Of sharded ones,
            the part of this process is copied and perturbed.
        origin: The copy of an earlier point, ``point.origin``, to go back to with :meth:`restore`; by default a copy of the
            parameters as they are is made.
    """

    def __init__(self, parameters: Sequence[Tensor], origin: Sequence[Tensor] | None = None) -> None:
        self.parameters = [local(parameter) for parameter in parameters]
        self.origin = [parameter.clone() for parameter in self.parameters] if origin is None else origin
        """The copy."""
        self._step: tuple[ProbeDirections, int, float] | None = None
        # Where the parameters are: at the copy or a step away from it, along which directions, and in which versions.
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
            index: Which one, ``0 <= index < q``.
            distance: The step :math:`s`, in units of parameter norm.
        """
        self._step = directions, index, distance
        known = self._versions is not None and self._versions == self._seen()
        near = known and (self._along is None or self._along is directions)
        directions.move(self.parameters, self.origin, index, distance, near=near)
        self._along, self._versions = directions, self._seen()

    def renew(self) -> None:
        """Set the parameters to the last point again, after other code has written to them."""
        self._versions = None  # which may not tell of the write
        if self._step is None:
            self.restore()
        else:
            self.perturb(*self._step)
