"""How factored directions are laid out: which parameters are matrices to factor, and where their factors lie."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factors import Factors, Matrix, Whole
from lightning_vamo.core.sharding import first_number, local, shard_group

# From so many rows on, it pays on a CPU to look for those that are zero.
MANY_ROWS = 4096


class Layout:
    """Which parameters are factored, and how to take their gradients apart.

    A parameter of two or more dimensions is seen as a matrix, a convolution as ``out x (in * height * width)``; one that its
    factors would not make smaller is kept whole, as vectors are.

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
                self.wholes.append(Whole(position, slice(whole, end), parameter.numel(), first))
                whole = end
        self.sizes = left, right, whole

    def zeros(self, count: int) -> Factors:
        """Zeros for ``count`` directions."""
        left, right, whole = self.sizes
        rows = count * self.rank
        return Factors(self.empty(rows, left).zero_(), self.empty(rows, right).zero_(), self.empty(count, whole).zero_())

    def empty(self, *shape: int) -> Tensor:
        """A tensor in the type and on the device of the factors."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def matrix(self, matrix: Matrix, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """One of ``tensors``, one per parameter, seen as a matrix in its own type: a view unless its layout has none."""
        tensor = tensors[matrix.position]
        return None if tensor is None else local(tensor).reshape(-1, matrix.columns)

    def rest(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Those of ``tensors`` that are kept whole, flattened and concatenated; zeros for missing ones."""
        numbers = self.empty(self.sizes[2])
        for whole in self.wholes:
            tensor = tensors[whole.position]
            part = numbers[whole.place]
            if tensor is None:
                part.zero_()
            else:
                part.copy_(local(tensor).reshape(-1))
        return numbers

    def rows(self, matrix: Matrix, wide: Tensor) -> tuple[slice | Tensor, Tensor]:
        """The rows of a matrix, without those that are zero where they are most, as in the gradient of an embedding.

        Args:
            matrix: Which matrix.
            wide: Its numbers in this process, in the type of the factors.

        Returns:
            Where the rows lie in the left factors, and the rows.
        """
        # A GPU has the bandwidth, and would have to be waited for.
        if self.device.type == "cpu" and len(wide) >= MANY_ROWS:
            present = torch.linalg.vector_norm(wide, dim=1).nonzero()[:, 0]
            if len(present) < len(wide) / 2:
                return present + matrix.left.start, wide[present]
        return matrix.left, wide

    def products(self, tensors: Sequence[Tensor | None], factors: Factors) -> tuple[Factors, Tensor]:
        r"""What a gradient gives with directions: zeros where it is missing.

        Args:
            tensors: The gradient :math:`G`, or None, of each parameter.
            factors: The directions :math:`A_j B_j^\top`.

        Returns:
            :math:`G B_j`, :math:`G^\top A_j`, the latter of the rows in this process, and of the rest the numbers themselves,
            without a dimension for directions; and the squared norm of what this process holds, float64.
        """
        left, right, rest = torch.zeros_like(factors.left), torch.zeros_like(factors.right), self.rest(tensors)
        squares = [torch.dot(rest, rest)]
        for matrix in self.matrices:
            tensor = self.matrix(matrix, tensors)
            if tensor is not None:
                # All that is read of a matrix is read before the next one: they fit a processor's cache one by one.
                places, rows = self.rows(matrix, tensor.to(left))
                left[:, places] = (rows @ factors.right[:, matrix.right].t()).t()
                right[:, matrix.right] = factors.left[:, places] @ rows
                flat = rows.reshape(-1)
                squares.append(torch.dot(flat, flat))
        return Factors(left, right, rest), torch.stack(squares).double().sum()

    def random(self, count: int, generator: torch.Generator) -> Factors:
        """Random directions, not of unit norm: independent normal factors; a tensor's share is that of its numbers.

        Args:
            count: How many.
            generator: CPU generator; every process draws all, and keeps its part.

        Returns:
            The directions, to be scaled.
        """

        def normal(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator, dtype=torch.float64, device="cpu")

        factors = self.zeros(count)
        for matrix in self.matrices:
            own = slice(matrix.first, matrix.first + matrix.left.stop - matrix.left.start)
            left = normal(count * self.rank, matrix.rows) * (matrix.columns / self.rank) ** 0.5
            factors.left[:, matrix.left] = left[:, own].to(factors.left)
            right = normal(count * self.rank, matrix.columns)
            factors.right[:, matrix.right] = (right / right.norm(dim=1, keepdim=True)).to(factors.right)
        for whole in self.wholes:
            own = slice(whole.first, whole.first + whole.place.stop - whole.place.start)
            factors.whole[:, whole.place] = normal(count, whole.numbers)[:, own].to(factors.whole)
        return factors
