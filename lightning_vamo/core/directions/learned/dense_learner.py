"""The learner of directions that are kept as whole vectors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.algebra import leading, square
from lightning_vamo.core.directions.learned.dense import DenseDirections, Flat, Rows
from lightning_vamo.core.directions.learned.passes import Oversampling, PowerIteration
from lightning_vamo.core.directions.random.orthonormal import OrthonormalDirections
from lightning_vamo.core.directions.random.seeded import SeededDirections
from lightning_vamo.core.directions.random.stored import BLOCK, stored_rows
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, small, tensor_of, zeroed_unless
from lightning_vamo.errors import InvalidArgumentError


class DenseLearner(PowerIteration[Rows]):
    """Learns the orthonormal directions along which gradients are noisiest; takes memory for ``(2q + 2) * d`` numbers.

    Args:
        parameters: Tensors that give the shapes, types, devices and placements.
        start: Orthonormal directions to start from.
        count: ``q``, the number of directions that are used.
        oversampling: Number of further directions that are learned but not used; see :data:`Oversampling`.
    """

    def __init__(self, parameters: Sequence[Tensor], start: DenseDirections, count: int, oversampling: Oversampling) -> None:
        self._parameters = parameters
        self._flat = start.flat
        self._rows = start.whole
        super().__init__(start, count, oversampling, start.whole[0].device)

    def _begin_pass(self) -> None:
        super()._begin_pass()
        # Allocated with the first gradient: by then nobody uses the directions of the last pass.
        self._sums: Rows = []
        self._last: list[Tensor] = []
        self._now: list[Tensor] = []

    @torch.no_grad()
    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """See :meth:`Learner.observe`; a gradient that is not finite is ignored."""
        if not self._sums:
            self._sums = [torch.zeros_like(rows) for rows in self._rows]
            self._last, self._now = self._flat.zeros(), self._flat.zeros()
        now, last = self._now, self._last
        self._flat.take(gradients, now)
        along = self._summed([torch.mv(rows, part) for rows, part in zip(self._rows, now, strict=True)])
        seen = Slopes.of(self._following.shards.total(along), self._square(now))
        if self.current is not None:
            self.slopes = self.current.in_basis(seen)
        known, finite = seen.finite & self._follows, seen.finite
        change = tensor_of(self._change(seen.coordinates, finite))
        for sums, after, before in zip(self._sums, now, last, strict=True):
            difference = zeroed_unless(known, torch.sub(after, before, out=before))
            sums.addr_(change.to(sums), difference)
            zeroed_unless(finite, after)
        self._squares = self._squares + self._square(last) / 2
        self._now, self._last = last, now

    def _square(self, vector: list[Tensor]) -> Small:
        """The squared norm of a flat vector, for this process's part."""
        return small(self._summed([torch.dot(part, part) for part in vector]))[()]

    def _summed(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.stack([part.to(self._device, torch.float64) for part in parts]).sum(0)

    def _basis(self) -> Rows:
        return self._rows

    def _power_iterated(self) -> Rows | None:
        gram = self._following.shards.total(_gram(self._sums))
        if not bool(gram.isfinite().all()):
            return None
        mixing = leading(gram)
        return _mixed_(self._sums, mixing.t()) if mixing.shape[1] else None

    def _follow(self, basis: Rows, count: int, generator: torch.Generator) -> DenseDirections:
        held = len(basis[0])
        if held > count:
            basis = [rows[:count].clone() for rows in basis]
        elif held < count:
            more = random_rows(self._parameters, count - held, generator)
            basis = [torch.cat(pair) for pair in zip(basis, more, strict=True)]
        factor = torch.linalg.cholesky(self._following.shards.total(_gram(basis)))
        identity = torch.eye(count, dtype=torch.float64, device="cpu")
        self._rows = _mixed_(basis, torch.linalg.solve_triangular(factor, identity, upper=False))
        return DenseDirections(self._rows, self._flat)

    def _first(self, count: int) -> DenseDirections:
        return DenseDirections([rows[:count] for rows in self._rows], self._flat)

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
        self._now = self._flat.zeros() if self._last else []
        self._following = DenseDirections(self._rows, self._flat)
        super().load_state_dict(state)


def random_rows(parameters: Sequence[Tensor], count: int, generator: torch.Generator) -> Rows:
    """Random orthonormal directions, in float32 or wider.

    Args:
        parameters: Tensors that give the shapes, devices and placements.
        count: Number of directions.
        generator: CPU generator, in the same state in every process.

    Returns:
        A row for each direction.
    """
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device="cpu"))
    rows = stored_rows(SeededDirections(OrthonormalDirections(), parameters, count, seed), parameters, wide=True)
    return Flat(parameters).join(rows)


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
