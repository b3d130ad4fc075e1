r"""The base class of drawn probe directions: move weights along them, project a gradient on them, subtract them.

All families share one normalisation, :math:`\mathbb{E}[u u^\top] = I_d / d`: a direction has (mean) unit norm *jointly over all
parameters*. Then :math:`(d/q) \sum_j \delta_j u_j` estimates the gradient whatever the family, and one smoothing radius
``mu`` means the same distance for all of them.
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
    Where the parameters are sharded, tensors may be given as DTensors or as the parts that this process holds.

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
            index: Which direction, ``0 <= index < count``.
            distance: The step :math:`s` along it, in units of parameter norm.
            near: Whether ``targets`` hold :math:`x` already, or where a step along another of these directions led from there:
                numbers that no direction touches need not be written then.
        """

    @abstractmethod
    def project(self, vectors: Sequence[Tensor | None]) -> Tensor:
        r"""Inner products :math:`u_j^\top g` with every direction.

        Args:
            vectors: :math:`g`, of the parameters' shapes; ``None`` stands for zeros.

        Returns:
            Shape ``(q,)``, float32 or wider, on the parameters' device; over all shards, which takes one reduction.
        """

    def measure(self, vectors: Sequence[Tensor | None]) -> Slopes:
        """The inner products of :meth:`project`, with the squared norm of the vectors.

        Args:
            vectors: See :meth:`project`.

        Returns:
            The slopes, with the squared norm if it takes no further look.
        """
        return Slopes.of(self.project(vectors))

    def in_basis(self, slopes: Slopes) -> Slopes:
        """The slopes of :meth:`measure`, from inner products that begin with these directions and may go on with others.

        Args:
            slopes: Inner products with at least as many directions, of which these are the leading ones.

        Returns:
            The slopes along these.
        """
        return slopes.leading(self.count)

    def subtract_(self, vectors: Sequence[Tensor | None], coefficients: Tensor, slopes: Slopes | None = None) -> Tensor:
        r"""Subtract :math:`w = \sum_j c_j u_j` from ``vectors``, in place.

        Args:
            vectors: :math:`g`, tensors to change, of the parameters' shapes; a ``None`` is passed over.
            coefficients: :math:`c`, shape ``(q,)``.
            slopes: What is known of :math:`g` already. Where what is returned follows from that, :math:`g` is not read again.

        Returns:
            Shape ``(3,)``, float64: :math:`g^\top g`, :math:`g^\top w`, :math:`w^\top w`, over the tensors that are not
            None, as they were before. The squared norm falls by :math:`2 g^\top w - w^\top w`, which a difference of norms
            would lose to rounding. Of sharded tensors, the share of this process: a training step is not to communicate.
        """
        return tensor_of(stacked(*self.remove_(vectors, small(coefficients.detach()), slopes)))

    @abstractmethod
    def remove_(self, vectors: Sequence[Tensor | None], coefficients: Small, slopes: Slopes | None = None) -> Small:
        """Like :meth:`subtract_`, with coefficients and results as numbers for :mod:`~lightning_vamo.core.small` arithmetic.

        Args:
            vectors: See :meth:`subtract_`.
            coefficients: See :meth:`subtract_`, where the vectors are.
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
            f"{type(self).__name__} are not made to be gone along in place: use a random family, such as GaussianDirections,"
            " or CoordinateDirections."
        )

    def parts(self, index: int) -> Iterator[Tensor | None]:
        """The parts of a direction, one after another, so that only a part is in memory at a time.

        Args:
            index: Which direction, ``0 <= index < count``.

        Returns:
            Flat tensors of float32 or wider, parameter by parameter, as many and as large as :meth:`sizes` says; of sharded
            parameters, those of this process. They are not to be changed. None stands for a part of zeros.
        """
        del index
        self.sizes()
        return iter(())

    def whiten(self, slopes: Tensor) -> Tensor:
        """Turn slopes along the directions into coordinates in an orthonormal basis of their span.

        Args:
            slopes: Inner products with each direction, or probe differences along each, shape ``(..., q)``.

        Returns:
            The coordinates that :meth:`project` gives and :meth:`subtract_` takes, shape ``(..., q)``. Unless a family says
            otherwise the directions are themselves the basis, and these are the slopes.
        """
        return slopes

    def turning(self, others: "ProbeDirections", parameters: Sequence[Tensor]) -> Tensor:
        r"""The matrix from coordinates in this span's basis to coordinates in the basis of other directions' span.

        Args:
            others: Other directions for the same parameters. A family whose basis is not orthonormal has no such matrix.
            parameters: Tensors that give the shapes, types and devices.

        Returns:
            The inner products of this basis with the other one, shape ``(q, others' q)``, which coordinates are to be
            multiplied by from the right; over all shards, which takes a reduction for each of the others.
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
            Shape ``(q, d)``, parameters flattened and concatenated in order; of sharded ones, the part of this process.
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
    """The numbers of :func:`moments` one by one, of flat tensors, in float32 or wider."""
    wide = at_least_float32(vector.dtype)
    g, w = vector.to(wide), step.to(wide)
    return [torch.dot(g, g), torch.dot(g, w), torch.dot(w, w)]
