"""The layout of factored directions: which parameters are factored as matrices, and where their factors are stored."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vamo.core.sharding import first_number, local, shard_group


@dataclass(frozen=True)
class Matrix:
    """A parameter whose part of a direction is kept as a product of thin factors.

    Attributes:
        position: Position of the parameter in the list of parameters.
        left: Place of this process's rows in the left factors of all matrices.
        right: Place of the columns in the right factors of all matrices.
        rows: Number of rows in all processes.
        first: The first row in this process.
    """

    position: int
    left: slice
    right: slice
    rows: int
    first: int

    @property
    def columns(self) -> int:
        """The number of columns of the matrix."""
        return int(self.right.stop - self.right.start)

    @property
    def held(self) -> int:
        """The number of the matrix's rows in this process."""
        return int(self.left.stop - self.left.start)


@dataclass(frozen=True)
class Whole:
    """A parameter whose part of a direction is not factored, since factors would save no memory.

    Attributes:
        position: Position of the parameter in the list of parameters.
        place: Place of this process's numbers among the numbers of all such parameters.
        numbers: How many numbers the parameter has in all processes.
        first: The first number in this process.
        shape: The parameter's shape in this process.
    """

    position: int
    place: slice
    numbers: int
    first: int
    shape: torch.Size

    @property
    def held(self) -> int:
        """The number of the parameter's numbers in this process."""
        return int(self.place.stop - self.place.start)


class Layout:
    """Which parameters are factored, and how to split their gradients.

    A parameter of two or more dimensions is seen as a matrix; a convolution, for example, as ``out x (in * height * width)``.
    Vectors, and matrices whose factors would take no less memory, are not factored but kept whole.

    Args:
        parameters: Tensors that give the shapes, types, devices and placements.
        rank: Rank of each matrix of a direction.
    """

    def __init__(self, parameters: Sequence[Tensor], rank: int) -> None:
        self.rank = rank
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self.shards = shard_group(parameters)
        self.matrices: list[Matrix] = []
        self.wholes: list[Whole] = []
        self.device = local(parameters[0]).device
        self.dtype = torch.float32
        left = right = whole = 0
        for position, parameter in enumerate(parameters):
            held = local(parameter)
            self.dtype = torch.promote_types(self.dtype, held.dtype)
            first = first_number(parameter)
            rows = len(parameter) if parameter.dim() else 1
            columns = parameter.numel() // max(1, rows)
            if rank * (rows + columns) < parameter.numel():
                ends = left + len(held), right + columns
                self.matrices.append(Matrix(position, slice(left, ends[0]), slice(right, ends[1]), rows, first // columns))
                left, right = ends
            else:
                end = whole + held.numel()
                self.wholes.append(Whole(position, slice(whole, end), parameter.numel(), first, held.shape))
                whole = end
        self.sizes = left, right, whole
        # Zeros that stand for missing gradients of parameters that are kept whole.
        self._missing = [self.empty(part.held).zero_() for part in self.wholes]

    def empty(self, *shape: int) -> Tensor:
        """A tensor in the type and on the device of the factors."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def matrix(self, matrix: Matrix, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """A parameter's tensor of ``tensors`` as a matrix in its own type: a view if the tensor's layout allows a view."""
        tensor = tensors[matrix.position]
        if tensor is None:
            return None
        held = local(tensor)
        return held if held.dim() == 2 else held.reshape(-1, matrix.columns)

    def rest(self, tensors: Sequence[Tensor | None], out: Tensor) -> Tensor:
        """The ``tensors`` of parameters that are not factored, flattened and concatenated; zeros for missing tensors.

        Args:
            tensors: A tensor, or None, for each parameter.
            out: A flat tensor in the type of the factors, which gets the numbers.

        Returns:
            ``out``.
        """
        parts = []
        for whole, missing in zip(self.wholes, self._missing, strict=True):
            tensor = tensors[whole.position]
            held = missing if tensor is None else local(tensor)
            parts.append(held if held.dim() == 1 else held.reshape(-1))
        return torch.cat(parts, out=out) if parts else out
