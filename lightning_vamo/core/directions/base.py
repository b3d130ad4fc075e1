r"""The base class of drawn probe directions: move weights along directions, and project gradients on directions.

All families share one normalisation, :math:`\mathbb{E}[u u^\top] = I_d / d`: a direction has (mean) unit norm *jointly over all
parameters*. Then :math:`(d/q) \sum_j \delta_j u_j` estimates the gradient for every family, and a smoothing radius ``mu`` means
the same distance for all families.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import ShardGroup, local
from lightning_vamo.core.small import Small, small, stacked, tensor_of
from lightning_vamo.errors import UnsupportedError


class ProbeDirections(ABC):
    r"""The ``q`` directions :math:`u_1 \ldots u_q \in \mathbb{R}^d` of one snapshot.

    A point of :math:`\mathbb{R}^d` is a list of tensors, one per parameter, in the order in which the directions were drawn.
    If the parameters are sharded, tensors may be DTensors or the parts that this process holds.

    Attributes:
        count: ``q``, the number of directions.
        dimension: ``d``, the number of coordinates over all parameters, in all processes.
        shards: The processes that hold the point together.
    """

    count: int
    dimension: int
    shards: ShardGroup = ShardGroup()

    @abstractmethod
    def move(
        self, targets: Sequence[Tensor], origins: Sequence[Tensor], index: int, distance: float, *, near: bool = False
    ) -> None:
        r"""Set ``targets`` to :math:`x + s\,u_j`, in place.

        Args:
            targets: Tensors to overwrite, of the parameters' shapes.
            origins: The point :math:`x`; left as it is, and sharing no storage with ``targets``.
            index: Number of the direction, ``0 <= index < count``.
            distance: The step :math:`s` along the direction, in units of parameter norm.
            near: Whether ``targets`` hold :math:`x`, or :math:`x` plus a step along another of these directions: then numbers
                that no direction touches need not be written.
        """

    @abstractmethod
    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        r"""Inner products :math:`u_j^\top g` with every direction.

        Args:
            vectors: :math:`g`, of the parameters' shapes; ``None`` stands for zeros.

        Returns:
            Shape ``(q,)``, float32 or wider, on the parameters' device. Sharded parameters take one reduction over the shards.
        """

    def measure(self, vectors: Sequence[Tensor | None]) -> Slopes:
        """The inner products of :meth:`project`, with the squared norm of the vectors.

        Args:
            vectors: See :meth:`project`.

        Returns:
            The slopes, with the squared norm if the vectors need not be read again for it.
        """
        return Slopes.of(self.project(vectors))

    def in_basis(self, slopes: Slopes) -> Slopes:
        """The slopes of :meth:`measure`, from inner products with these directions, perhaps followed by other directions.

        Args:
            slopes: Inner products with these directions, and perhaps with further directions.

        Returns:
            The slopes along these directions.
        """
        return slopes.leading(self.count)

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor, slopes: Slopes | None = None) -> Tensor:
        r"""Subtract :math:`w = \sum_j c_j e_j` from ``vectors``, in place.

        In most families :math:`e_j` are the directions :math:`u_j`. In families whose :meth:`whiten` changes slopes, they are
        the orthonormal basis of the directions' span in which :meth:`whiten` gives coordinates.

        Args:
            vectors: :math:`g`, tensors to change, of the parameters' shapes; a ``None`` is left out.
            coefficients: :math:`c`, shape ``(q,)``.
            slopes: The slopes of :math:`g`, if they are known: then :math:`g` may not have to be read again.

        Returns:
            Shape ``(3,)``, float64: :math:`g^\top g`, :math:`g^\top w`, :math:`w^\top w`, with :math:`g` before the
            subtraction, over the tensors that are not None. The squared norm falls by :math:`2 g^\top w - w^\top w`, which a
            difference of norms would lose to rounding. For sharded tensors, the share of this process, so that a training step
            need not communicate.
        """
        return tensor_of(stacked(*self.remove_(vectors, small(coefficients.detach()), slopes)))

    @abstractmethod
    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """Like :meth:`subtract_`, with coefficients and results as numbers for :mod:`~lightning_vamo.core.small` arithmetic.

        Args:
            vectors: See :meth:`subtract_`.
            coefficients: See :meth:`subtract_`; on the device of the vectors.
            slopes: See :meth:`subtract_`.

        Returns:
            The three numbers of :meth:`subtract_`, one after another or in an array.
        """

    def sizes(self) -> list[list[int]]:
        """The sizes of the :meth:`parts`, parameter by parameter.

        Raises:
            UnsupportedError: If the family has no parts.
        """
        raise UnsupportedError(
            f"{type(self).__name__} cannot move weights in place: use a random family, such as GaussianDirections(), or"
            " CoordinateDirections()."
        )

    def parts(self, index: int) -> Iterator[Tensor | None]:
        """The parts of a direction, one after another, so that only a part is in memory at a time.

        Args:
            index: Number of the direction, ``0 <= index < count``.

        Returns:
            Flat tensors of float32 or wider, parameter by parameter, with the sizes of :meth:`sizes`; for sharded parameters,
            the part of this process. Do not change these tensors. None stands for a part of zeros.
        """
        del index
        self.sizes()
        return iter(())

    def whiten(self, slopes: Tensor) -> Tensor:
        """Turn slopes along the directions into coordinates in an orthonormal basis of their span.

        Args:
            slopes: Inner products with each direction, or probe differences along each, shape ``(..., q)``.

        Returns:
            The coordinates that :meth:`project` gives and :meth:`subtract_` takes, shape ``(..., q)``. In most families the
            directions themselves are the basis, and the coordinates are the slopes.
        """
        return slopes

    def turning(self, others: "ProbeDirections", parameters: Sequence[Tensor]) -> Tensor:
        r"""The matrix that turns coordinates in the basis of these directions' span into coordinates in another basis.

        Args:
            others: Other directions for the same parameters, whose span has the other basis. Both bases must be orthonormal.
            parameters: Tensors that give the shapes, types and devices.

        Returns:
            The inner products of this basis with the other basis, shape ``(q, others' q)``. Multiply coordinates by it from the
            right. Sharded parameters take a reduction for each of the other directions.
        """
        held = [local(parameter) for parameter in parameters]
        targets = [torch.empty_like(part, dtype=at_least_float32(part.dtype)) for part in held]
        zeros = [target.new_zeros(()).expand(target.shape) for target in targets]
        columns = []
        for index in range(others.count):
            others.move(targets, zeros, index, 1.0)
            columns.append(self.project(targets))
        return others.whiten(torch.stack(columns, dim=-1))

    def dense(self, parameters: Sequence[Tensor]) -> Tensor:
        """All directions as one matrix, for tests and for small problems.

        Args:
            parameters: Tensors that give the shapes, the type and the device.

        Returns:
            Shape ``(q, d)``, parameters flattened and concatenated in order; for sharded parameters, the part of this process.
        """
        zeros = [torch.zeros_like(local(parameter)) for parameter in parameters]
        rows = []
        for index in range(self.count):
            row = [torch.empty_like(part) for part in zeros]
            self.move(row, zeros, index, 1.0)
            rows.append(torch.cat([part.reshape(-1) for part in row]))
        return torch.stack(rows)


def moments(vector: Tensor, step: Tensor) -> Tensor:
    r"""Inner products of two tensors with themselves and with each other.

    Args:
        vector: :math:`g`.
        step: :math:`w`, of the same shape.

    Returns:
        Shape ``(3,)``, float64: :math:`g^\top g`, :math:`g^\top w`, :math:`w^\top w`.
    """
    return torch.stack(inner_products(vector.reshape(-1), step.reshape(-1))).double()


def inner_products(vector: Tensor, step: Tensor) -> list[Tensor]:
    """The three numbers of :func:`moments` for flat tensors, as separate tensors in float32 or wider."""
    wide = at_least_float32(vector.dtype)
    g, w = vector.to(wide), step.to(wide)
    return [torch.dot(g, g), torch.dot(g, w), torch.dot(w, w)]
