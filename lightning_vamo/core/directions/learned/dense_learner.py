"""The learner of directions that are kept as whole vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.algebra import leading, square
from lightning_vamo.core.directions.learned.passes import Oversampling, PowerIteration
from lightning_vamo.core.directions.random.orthonormal import OrthonormalDirections
from lightning_vamo.core.directions.random.seeded import SeededDirections
from lightning_vamo.core.directions.random.stored import BLOCK, StoredDirections, stored_rows
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.core.small import small, tensor_of, zeroed_unless
from lightning_vamo.errors import InvalidArgumentError

Rows = list[Tensor]  # for each parameter, ``q`` rows of its numbers in this process


class DenseLearner(PowerIteration[Rows]):
    """Learns the orthonormal directions along which gradients are noisiest; takes memory for ``(2q + 1) * d`` numbers.

    Args:
        parameters: Tensors that give the shapes, types, devices and placements.
        start: Orthonormal directions to start from.
        count: ``q``, the number of directions that are used.
        oversampling: Number of further directions that are learned but not used; see :data:`Oversampling`.
    """

    def __init__(self, parameters: Sequence[Tensor], start: StoredDirections, count: int, oversampling: Oversampling) -> None:
        self._parameters = parameters
        self._rows = start.rows
        super().__init__(start, count, oversampling, start.rows[0].device)

    def _begin_pass(self) -> None:
        super()._begin_pass()
        # Allocated with the first gradient: by then nobody uses the directions of the last pass.
        self._sums: Rows = []
        self._last: list[Tensor] = []

    @torch.no_grad()
    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """See :meth:`Learner.observe`; a gradient that is not finite is ignored."""
        if not self._sums:
            self._sums = [torch.zeros_like(rows) for rows in self._rows]
            self._last = [torch.zeros_like(rows[0]) for rows in self._rows]
        pairs = zip(gradients, self._rows, strict=True)
        products = [rows @ _flat(vector, rows).to(self._device) for vector, rows in pairs if vector is not None]
        along = torch.stack([*products, self._rows[0].new_zeros(self._following.count)]).sum(dim=0)
        seen = Slopes.of(self._following.shards.total(along))
        if self.current is not None:
            self.slopes = self.current.in_basis(seen)
        known, finite = seen.finite & self._follows, seen.finite
        change = tensor_of(self._change(seen.coordinates, finite))
        squares = []
        for vector, sums, last in zip(gradients, self._sums, self._last, strict=True):
            now = torch.zeros_like(last) if vector is None else _flat(vector, sums)
            difference = zeroed_unless(known, now - last)
            sums.addr_(change.to(sums), difference)
            squares.append(torch.dot(difference, difference).to(self._device))
            zeroed_unless(finite, last.copy_(now))
        self._squares = self._squares + small(torch.stack(squares)).sum() / 2

    def _basis(self) -> Rows:
        return self._rows

    def _power_iterated(self) -> Rows | None:
        gram = self._following.shards.total(_gram(self._sums))
        if not bool(gram.isfinite().all()):
            return None
        mixing = leading(gram)
        return _mixed_(self._sums, mixing.t()) if mixing.shape[1] else None

    def _follow(self, basis: Rows, count: int, generator: torch.Generator) -> StoredDirections:
        held = len(basis[0])
        if held > count:
            basis = [rows[:count].clone() for rows in basis]
        elif held < count:
            more = random_rows(self._parameters, count - held, generator)
            basis = [torch.cat(pair) for pair in zip(basis, more, strict=True)]
        factor = torch.linalg.cholesky(self._following.shards.total(_gram(basis)))
        identity = torch.eye(count, dtype=torch.float64, device="cpu")
        self._rows = _mixed_(basis, torch.linalg.solve_triangular(factor, identity, upper=False))
        return dense_directions(self._parameters, self._rows)

    def _first(self, count: int) -> StoredDirections:
        return dense_directions(self._parameters, [rows[:count] for rows in self._rows])

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Learner.state_dict`."""
        return {"rank": None, "directions": self._rows, "sums": self._sums, "last": self._last, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.load_state_dict`.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            InvalidArgumentError: If the state belongs to other parameters, or to factored directions.
        """
        sizes = [rows.shape[1] for rows in self._rows]
        if state["rank"] is not None or [rows.shape[1] for rows in state["directions"]] != sizes:
            raise InvalidArgumentError(
                f"`state` holds directions of rank {state['rank']}, or for other parameters, or for other shards of the"
                " parameters: resume the same model in as many processes, with"
                f" GradientSubspaceDirections(rank={state['rank']})."
            )
        self._rows, self._sums, self._last = (self._copies(state[key]) for key in ("directions", "sums", "last"))
        self._following = dense_directions(self._parameters, self._rows)
        super().load_state_dict(state)


def random_rows(parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> Rows:
    """Random orthonormal directions, in float32 or wider.

    Args:
        parameters: Tensors that give the shapes, devices and placements.
        count: Number of directions.
        generator: CPU generator, in the same state in every process.

    Returns:
        For each parameter, or its shard, a row for each direction.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    return stored_rows(SeededDirections(OrthonormalDirections(), parameters, count, seed), parameters, wide=True)


def dense_directions(parameters: Sequence[Tensor], rows: Rows) -> StoredDirections:
    """The directions for ``parameters`` whose vectors are in ``rows``."""
    return StoredDirections(rows, sum(parameter.numel() for parameter in parameters), shard_group(parameters))


def _flat(vector: Tensor, like: Tensor) -> Tensor:
    return local(vector).reshape(-1).to(like)


def _blocks(basis: Rows) -> Iterator[Tensor]:
    """Blocks of columns, small enough that results computed from a block take little memory."""
    return (block for rows in basis for block in torch.split(rows, BLOCK, dim=1))


def _gram(basis: Rows) -> Tensor:
    """Inner products of this process's part of the directions, float64, on the CPU."""
    return sum((square(block).cpu() for block in _blocks(basis)), torch.zeros((), dtype=torch.float64, device="cpu"))


def _mixed_(basis: Rows, mixing: Tensor) -> Rows:
    """Combine the directions; the combinations overwrite the directions."""
    for block in _blocks(basis):
        block[: len(mixing)] = mixing.to(block) @ block
    return [rows[: len(mixing)] for rows in basis]
