"""Learned directions in factored form."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.directions.learned.factored import FactoredDirections, normalised, slopes
from lightning_vamo.core.directions.learned.factors import Factors
from lightning_vamo.core.directions.learned.nystrom import power_iterated
from lightning_vamo.core.directions.learned.passes import PowerIteration
from lightning_vamo.errors import InvalidArgumentError


class FactoredLearner(PowerIteration[Factors]):
    r"""Follows the leading directions of gradient noise, each matrix of each as ``rank`` outer products.

    For a matrix with gradient :math:`G_t`, where direction :math:`j` is :math:`A_j B_j^\top`, only the sketches
    :math:`P_j = Y_j B_j` and :math:`Q_j = Y_j^\top A_j` are summed up, from the thin products :math:`G_t B_j` and
    :math:`G_t^\top A_j`, of which the last ones are kept for the difference. At the end of the pass :func:`power_iterated`
    makes directions of the sketches. No gradient is kept, and no matrix is made.

    Sharded by rows, :math:`G_t B_j` is a matter of this process's rows, and the sum that :math:`G_t^\top A_j` takes over all
    processes can wait for the end of the pass. Only the ``q`` numbers :math:`u_j^\top g_t` are summed at every gradient.

    Args:
        start: The directions to start from.
    """

    def __init__(self, start: FactoredDirections) -> None:
        self._layout = start.layout
        super().__init__(start, start.layout.device)

    def _begin_pass(self) -> None:
        super()._begin_pass()
        count = self._following.count
        self._sums, self._last = self._layout.zeros(count), self._layout.zeros(count)
        self._last.whole = self._last.whole[0].clone()

    @torch.no_grad()
    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """See :meth:`Learner.observe`; a gradient that is not finite is passed over."""
        layout, factors, last = self._layout, self._basis(), self._last
        now, square = layout.products(gradients, factors)
        along = layout.shards.total(slopes(layout, factors, now.left, now.whole)).double()
        self.slopes = self._directions.whiten(along)
        change, _, finite = self._change(self._directions.deflation @ along)
        for product in now.tensors():
            product.masked_fill_(~finite, 0.0)
        change = change.to(last.whole)
        columns = change.repeat_interleave(layout.rank)[:, None]
        for sums, product, before in zip(self._sums.tensors(), now.tensors(), last.tensors(), strict=True):
            torch.sub(product, before, out=before)
            if before is last.whole:
                sums.addr_(change, before)
            else:
                sums.addcmul_(columns, before)
        # The mean gradient is small against the noise: its square may stand for the noise's, which would take the last one.
        self._squares += torch.where(finite, square, 0.0)
        self._last = now

    @property
    def _directions(self) -> FactoredDirections:
        return self._following  # type: ignore[return-value]

    def _basis(self) -> Factors:
        return self._directions.factors

    def _power_iterated(self) -> Factors | None:
        turn = power_iterated(self._layout, self._directions, self._sums)
        return None if turn is None else normalised(self._layout, turn)

    def _follow(self, basis: Factors, count: int, generator: torch.Generator) -> FactoredDirections:
        layout, held = self._layout, len(basis.whole)
        if held > count:
            basis = basis.leading(count, layout.rank)
        elif held < count:
            basis = basis.followed_by(normalised(layout, layout.random(count - held, generator)))
        return FactoredDirections(layout, basis)

    def _first(self, count: int) -> FactoredDirections:
        return FactoredDirections(self._layout, self._basis().leading(count, self._layout.rank))

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Learner.state_dict`."""
        groups = {"directions": self._basis(), "sums": self._sums, "last": self._last}
        return {"rank": self._layout.rank, **{name: group.tensors() for name, group in groups.items()}, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`Learner.load_state_dict`.

        Args:
            state: What :meth:`state_dict` returned.

        Raises:
            InvalidArgumentError: If it is of other parameters, or of another rank.
        """
        layout = self._layout
        if (state["rank"], *(part.shape[1] for part in state["directions"])) != (layout.rank, *layout.sizes):
            raise InvalidArgumentError(
                f"`state` holds directions of rank {state['rank']} for other parameters, or other shards of them, than these:"
                f" resume the same model in as many processes, with rank={state['rank']}."
            )
        directions, self._sums, self._last = (Factors(*self._copies(state[key])) for key in ("directions", "sums", "last"))
        self._following = FactoredDirections(layout, directions)
        super().load_state_dict(state)
