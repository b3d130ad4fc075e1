"""The learner of directions that are kept as products of thin factors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factored import FactoredDirections
from lightning_vamo.core.directions.learned.factors import Factors, random, zeros
from lightning_vamo.core.directions.learned.grams import normalised
from lightning_vamo.core.directions.learned.nystrom import power_iterated
from lightning_vamo.core.directions.learned.passes import Oversampling, PowerIteration
from lightning_vamo.core.directions.learned.products import Products
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, library, product, repeated, typed
from lightning_vamo.errors import InvalidArgumentError


class FactoredLearner(PowerIteration[Factors]):
    r"""Learns the directions along which gradients are noisiest; each matrix of a direction is a sum of outer products.

    Let :math:`G_t` be the gradient of a matrix, and :math:`A_j B_j^\top` the matrix's part of direction :math:`j`. The learner
    sums up only the sketches :math:`P_j = Y_j B_j` and :math:`Q_j = Y_j^\top A_j`, from the thin products :math:`G_t B_j` and
    :math:`G_t^\top A_j`; the last products are kept for the difference with the next. At the end of the pass,
    :func:`power_iterated` turns the sketches into directions. No gradient is kept, and no matrix is made.

    If a matrix is sharded by rows, :math:`G_t B_j` needs only this process's rows, and the sum of :math:`G_t^\top A_j` over
    the processes can wait for the end of the pass. Only the ``q`` numbers :math:`u_j^\top g_t` are summed at every gradient.

    Args:
        start: The directions to start from.
        count: ``q``, the number of directions that are used.
        oversampling: Number of further directions that are learned but not used; see :data:`Oversampling`.
    """

    def __init__(self, start: FactoredDirections, count: int, oversampling: Oversampling) -> None:
        self._layout = start.layout
        super().__init__(start, count, oversampling, start.layout.device)

    def _begin_pass(self) -> None:
        super()._begin_pass()
        count = self._following.count
        self._sums = zeros(self._layout, count)
        self._now, self._last = Products(self._layout, count), Products(self._layout, count)

    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """See :meth:`Learner.observe`; a gradient that is not finite is ignored."""
        now, following = self._now, self._directions
        now.take(gradients, following.factors)
        slopes = Slopes.of(self._layout.shards.total_small(now.along(following.factors)), now.square)
        if self.current is not None:
            self.slopes = self.current.in_basis(slopes)
        # The mean gradient is small against the noise, so the gradient's square may stand for the noise's square, for which the
        # last gradient would have to be kept.
        self._squares = self._squares + slopes.square_or_zero
        if slopes.finite is not True:
            now.zero_unless(slopes.finite)
        self._sum_up(self._change(product(following.deflation, slopes.coordinates), slopes.finite))
        self._now, self._last = self._last, now

    def _sum_up(self, change: Small) -> None:
        """Add the difference of the last two gradients to the sketches, and forget the earlier of the two."""
        (sums, whole_sums), (now, whole), (last, last_whole) = (
            factors.arrays for factors in (self._sums, self._now.factors, self._last.factors)
        )
        column, functions = typed(change, now).reshape(-1, 1), library(now)
        functions.subtract(now, last, out=last)
        sums += functions.multiply(last, repeated(column, self._layout.rank), out=last)
        functions.subtract(whole, last_whole, out=last_whole)
        whole_sums += column * last_whole

    @property
    def _directions(self) -> FactoredDirections:
        return self._following  # type: ignore[return-value]

    def _basis(self) -> Factors:
        return self._directions.factors

    def _power_iterated(self) -> Factors | None:
        turn = power_iterated(self._directions, self._sums)
        return None if turn is None else normalised(turn)

    def _follow(self, basis: Factors, count: int, generator: torch.Generator) -> FactoredDirections:
        layout, held = self._layout, basis.count
        if held > count:
            basis = basis.leading(count).copy()
        elif held < count:
            basis = basis.followed_by(normalised(random(layout, count - held, generator)))
        return FactoredDirections(basis)

    def _first(self, count: int) -> FactoredDirections:
        return FactoredDirections(self._basis().leading(count))

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Learner.state_dict`."""
        groups = {"directions": self._basis(), "sums": self._sums, "last": self._last.factors}
        return {"rank": self._layout.rank, **{name: group.tensors() for name, group in groups.items()}, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.load_state_dict`.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            InvalidArgumentError: If the state belongs to other parameters, or to another rank.
        """
        layout = self._layout
        rows, columns, numbers = layout.sizes
        if (state["rank"], *(part.shape[1] for part in state["directions"])) != (layout.rank, rows + columns, numbers):
            raise InvalidArgumentError(
                f"`state` holds directions of rank {state['rank']}, or for other parameters, or for other shards of the"
                " parameters: resume the same model in as many processes, with"
                f" GradientSubspaceDirections(rank={state['rank']})."
            )
        directions, sums, last = (Factors(layout, *self._copies(state[key])) for key in ("directions", "sums", "last"))
        self._following = FactoredDirections(directions)
        self._begin_pass()
        self._sums, self._last.factors = sums, last
        super().load_state_dict(state)
