"""Carried rows: a table that each training step refreshes with the projection of its gradient, and that outlives an epoch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.control.rows import Rows
from lightning_vamo.errors import InvalidArgumentError


class CarriedRows(Rows):
    r"""A table whose rows are used once per epoch, each then replaced by what the step that used it measured.

    The step of batch :math:`k` computes :math:`c_k = U \nabla f_k(x_k)`, the fresh value of its row, before it corrects the
    gradient. So the corrections of an epoch come from the gradients of the epoch before,

    .. math:: r_k = \beta\,(c_k - \bar c), \qquad \bar c = \sum_k w_k c_k \Big/ \sum_k w_k,

    where the mean is that of the table as it was when the epoch began. SAGA, which draws batches with replacement, moves the
    mean at every step. Where each batch comes once per epoch, the rows still to be used are the old ones, and only their own
    mean is right for them: then :math:`\sum_k w_k r_k = 0` over every epoch, and an epoch that begins without rows, with zeros,
    trains plainly and fills the table.

    Where a step accumulates ``group`` batches, only their mean is known, so they share a row: that of ``group`` consecutive
    batches of the plan, of which the last row may have fewer.

    Args:
        weights: Number of samples of each batch, shape ``(K,)``. Rows whose batches have none stay out of the mean, and correct
            nothing.
        count: ``q``, the number of directions.
        beta: The effective coefficient :math:`\beta = \alpha d/q`.
        group: How many batches an optimizer step accumulates.
        deltas: Coordinates of each batch's gradient to begin with, shape ``(K, q)``; by default the first epoch fills it.

    Raises:
        InvalidArgumentError: If the shapes do not fit.

    References:
        Defazio et al., "SAGA", arXiv:1407.0202; Ying et al., "Convergence of variance-reduced stochastic learning under random
        reshuffling", arXiv:1708.01383, whose AVRG takes the mean of the last epoch too.
    """

    wants_slopes = True

    def __init__(self, weights: Tensor, count: int, beta: float = 1.0, group: int = 1, deltas: Tensor | None = None) -> None:
        if weights.ndim != 1 or (deltas is not None and deltas.shape != (len(weights), count)):
            raise InvalidArgumentError(
                f"`weights` must have shape (K,) and `deltas` shape (K, {count}), got {tuple(weights.shape)} and"
                f" {None if deltas is None else tuple(deltas.shape)}."
            )
        self.beta = beta
        self.group = group
        self._length = len(weights)
        self._weights = self._by_step(weights.double())
        self._rows = torch.zeros(len(self._weights), count, dtype=torch.float64, device=weights.device)
        self._known = torch.zeros_like(self._weights, dtype=torch.bool)
        if deltas is not None:
            given = (weights > 0).double()
            sums = self._by_step(torch.where(weights[:, None] > 0, deltas.double(), 0.0))
            self._rows = sums / self._by_step(given).clamp(min=1)[:, None]
            self._known |= self._weights > 0
        self._touched = deltas is not None
        self.begin_epoch()

    def _by_step(self, values: Tensor) -> Tensor:
        """Sums over the batches of each step."""
        steps = -(-len(values) // self.group)
        padded = values.new_zeros(steps * self.group, *values.shape[1:])
        padded[: len(values)] = values
        return padded.view(steps, self.group, *values.shape[1:]).sum(dim=1)

    def __len__(self) -> int:
        """``K``, the number of batches."""
        return self._length

    def begin_epoch(self) -> None:
        """Take the mean of the rows as they are, for the epoch that begins; exact, since it is taken anew in float64."""
        self.ready = self._touched
        """Whether there are rows to correct with; not while the first epoch fills the table."""
        # A copy of what is known: a row that the epoch is the first to fill had no part in its mean.
        self._used = self._known & (self._weights > 0)
        weights = self._weights * self._used
        self.mean = weights @ self._rows / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        """Weighted mean of the rows at the epoch's beginning, shape ``(q,)``, float64."""

    def correction(self, key: int) -> Tensor:
        """Coefficients along the directions of the control variate of one batch, as its step is to use them.

        Args:
            key: Position of the batch in the plan, ``0 <= key < len(self)``.

        Returns:
            Shape ``(q,)``, float64.

        Raises:
            IndexError: If ``key`` is not in the plan.
        """
        if not 0 <= key < self._length:
            raise IndexError(f"`key` must be in [0, {self._length}), the batches of the plan, got {key}.")
        row = key // self.group
        return torch.where(self._used[row], self.beta * (self._rows[row] - self.mean), 0.0)

    def refresh(self, keys: Sequence[int], slopes: Tensor, accumulated: int = 1) -> None:
        """Replace a row by what its step has measured.

        Args:
            keys: Positions in the plan of the batches whose gradients the step accumulated. If the batches do not share a row,
                as after a checkpoint of plain training from within a step, the step tells nothing of either row: none changes.
            slopes: Coordinates of the step's uncorrected gradient, shape ``(q,)``. If they are not finite, which makes the
                optimizer skip the step, the row stays as it is.
            accumulated: The number that each of the batches' losses was divided by.
        """
        rows = {key // self.group for key in keys}
        if len(rows) != 1:
            return
        [row] = rows
        new = slopes.to(self._rows) * (accumulated / len(keys))
        finite = new.isfinite().all()
        self._rows[row] = torch.where(finite, new, self._rows[row])
        self._known[row] |= finite
        self._touched = True

    def turn(self, turning: Tensor) -> None:
        """Go on along other directions, with what the rows say of them.

        A row is what is known of a gradient: a vector in the span of the old directions, whose part in the span of the new
        ones is kept. The corrections of an epoch cancel as before.

        Args:
            turning: Turns coordinates along the old directions into such along the new ones, shape ``(q, new q)``.
        """
        turning = turning.to(self._rows)
        self._rows, self.mean = self._rows @ turning, self.mean @ turning

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain types and tensors."""
        return {name: getattr(self, name) for name in _STATE}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device, beta: float) -> "CarriedRows":
        """A table that goes on from the state of another.

        Args:
            state: What :meth:`state_dict` returned.
            device: Where gradients are.
            beta: See the class.

        Returns:
            The table.
        """
        table = cls.__new__(cls)
        table.beta = beta
        for name in _STATE:
            setattr(table, name, state[name].to(device, copy=True) if isinstance(state[name], Tensor) else state[name])
        return table


_STATE = ("group", "ready", "mean", "_length", "_weights", "_rows", "_known", "_used", "_touched")
