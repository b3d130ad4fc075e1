"""Carried rows: a table that lasts many epochs; each training step renews its own row from its gradient's projection."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.control.bounds import bounded
from lightning_vamo.core.control.rows import Rows
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, product, small, tensor_of, zeros
from lightning_vamo.errors import InvalidArgumentError

DECAY = 0.5
"""The weight of the old row in a new one; over the tasks of ``examples/benchmarks/evidence/decay.py`` about the best one."""


class CarriedRows(Rows):
    r"""A table whose rows are used once per epoch; the step that used a row averages the row with its gradient's slopes.

    The step of batch :math:`k` computes :math:`U \nabla f_k(x_k)`, the fresh value of its row, before it corrects the gradient.
    So the corrections of an epoch come from the gradients of the epochs before,

    .. math:: r_k = \beta\,(c_k - \bar c), \qquad \bar c = \sum_k w_k c_k \Big/ \sum_k w_k, \qquad
        c_k \leftarrow \rho\, c_k + (1 - \rho)\, U \nabla f_k(x_k),

    where :math:`\bar c` is the mean of the table at the beginning of the epoch. (SAGA, which draws batches with replacement,
    moves the mean at every step.) Each batch comes once per epoch, so the rows still to be used are old rows, and only their
    own mean is right for old rows: :math:`\sum_k w_k r_k = 0` over every epoch. An epoch that begins without rows trains
    plainly, and fills the table.

    A fresh row holds two things: what is peculiar to its batch, and where the weights were when the batch came. Other epochs
    have the batches in another order, so the second part averages out; with :math:`\rho = 0`, as in SAGA, it stays as noise.

    Rows would do harm if they fell behind while the loss falls by orders of magnitude, or if their batches had enormous
    gradients. So rows can be bounded, before they are centred: see :func:`~lightning_vamo.core.control.bounds.bounded`.

    Where a step accumulates ``group`` batches, only the mean of their gradients is known, so ``group`` consecutive batches of
    the plan share a row. The last row may have fewer batches.

    Args:
        weights: Number of samples of each batch, shape ``(K,)``. A row whose batches have no samples stays out of the mean, and
            corrects nothing.
        count: ``q``, the number of directions.
        beta: The effective coefficient :math:`\beta = \alpha d/q`.
        group: How many batches an optimizer step accumulates.
        deltas: First coordinates of each batch's gradient, shape ``(K, q)``; by default the first epoch fills the table.
        bounds: Whether rows are bounded.
        decay: :math:`\rho`, the weight of the old row in the new one, in ``[0, 1)``.

    Raises:
        InvalidArgumentError: If the shapes do not fit.

    References:
        Defazio et al., "SAGA", arXiv:1407.0202; Ying et al., "Convergence of variance-reduced stochastic learning under random
        reshuffling", arXiv:1708.01383, whose method AVRG takes the mean of the last epoch too.
    """

    wants_slopes = True

    def __init__(
        self,
        weights: Tensor,
        count: int,
        beta: float = 1.0,
        group: int = 1,
        deltas: Tensor | None = None,
        *,
        bounds: bool = False,
        decay: float = DECAY,
    ) -> None:
        if weights.ndim != 1 or (deltas is not None and deltas.shape != (len(weights), count)):
            raise InvalidArgumentError(
                f"`weights` must have shape (K,) and `deltas` must have shape (K, {count}), with K the number of batches, got"
                f" {tuple(weights.shape)} and {None if deltas is None else tuple(deltas.shape)}."
            )
        self.beta = beta
        self.group = group
        self.bounds = bounds
        self.decay = decay
        self._length = len(weights)
        self._weights = small(self._by_step(weights.double()))
        self._rows = zeros(len(self._weights), count, device=weights.device)
        # Which rows are known, as ones.
        self._known = zeros(len(self._weights), device=weights.device)
        if deltas is not None:
            given = self._by_step((weights > 0).double())
            sums = self._by_step(torch.where(weights.unsqueeze(1) > 0, deltas.double(), 0.0))
            self._rows = small(sums / given.clamp(min=1).unsqueeze(1))
            self._known = small((given > 0).double())
        self._touched = self._fresh = deltas is not None
        self.begin_epoch()
        self._fresh = False

    def _by_step(self, values: Tensor) -> Tensor:
        """Sums over the batches of each step."""
        steps = -(-len(values) // self.group)
        padded = values.new_zeros(steps * self.group, *values.shape[1:])
        padded.narrow(0, 0, len(values)).copy_(values)
        return padded.view(steps, self.group, *values.shape[1:]).sum(dim=1)

    def __len__(self) -> int:
        """``K``, the number of batches."""
        return self._length

    def begin_epoch(self) -> None:
        """Centre the present rows for the coming epoch; the mean is computed anew in float64, so no error adds up."""
        self.ready = self._touched
        """Whether there are rows to correct with; False while the first epoch fills the table."""
        # A row that the coming epoch fills for the first time has no part in the mean, and corrects nothing.
        used = self._known * (self._weights > 0)
        weights = self._weights * used
        total = weights.sum().clip(torch.finfo(torch.float64).tiny)
        rows = small(bounded(tensor_of(self._rows), tensor_of(used) > 0)) if self.bounds else self._rows
        self._mean = product(weights, rows) / total
        self._centred = used.reshape(-1, 1) * (rows - self._mean)
        self._spread = product(weights, self._centred**2) / total
        # Rows are trusted from the first step on if they were measured at the weights that the epoch begins with.
        self._trusted = self._fresh

    @property
    def spread(self) -> Small | None:
        """See :class:`Rows`."""
        return None if self._trusted else self._spread

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the rows at the beginning of the epoch, after the bounds, shape ``(q,)``, float64."""
        return tensor_of(self._mean)

    def correction(self, key: int) -> Tensor:
        """Coefficients of a batch's control variate along the directions.

        Args:
            key: Position of the batch in the plan, ``0 <= key < len(self)``.

        Returns:
            Shape ``(q,)``, float64.

        Raises:
            IndexError: If ``key`` is not in the plan.
        """
        return tensor_of(self.row(key))

    def row(self, key: int) -> Small:
        """See :meth:`Rows.row`."""
        if not 0 <= key < self._length:
            raise IndexError(f"`key` must be in [0, {self._length}), the batches of the plan, got {key}.")
        return self.beta * self._centred[key // self.group]

    def refresh(self, keys: Sequence[int], slopes: Slopes, accumulated: int = 1) -> None:
        """Average a row with the slopes of its step's gradient; a row that is not known yet becomes these slopes.

        Args:
            keys: Positions in the plan of the batches whose gradients the step accumulated. If the batches do not share a row,
                as after a checkpoint that plain training wrote within a step, no row changes.
            slopes: The slopes of the step's uncorrected gradient along the directions. If the gradient is not finite, which
                makes the optimizer skip the step, the row stays as it is.
            accumulated: The number that the loss of each batch was divided by.
        """
        if not keys or (len(keys) > 1 and len({key // self.group for key in keys}) > 1):
            return
        row = keys[0] // self.group
        new = slopes.coordinates if len(keys) == accumulated else slopes.coordinates * (accumulated / len(keys))
        kept, finite = self.decay * self._known[row], slopes.finite
        mean = kept * self._rows[row] + (1 - kept) * new
        if isinstance(finite, Tensor):
            self._rows[row] = torch.where(finite, mean, self._rows[row])
            self._known[row] = self._known[row].clip(slopes.counted)
        elif finite:
            self._rows[row], self._known[row] = mean, 1.0
        self._touched = True

    def turn(self, turning: Tensor) -> None:
        """Change to other directions, and convert the rows to the new directions.

        A row stands for a vector in the span of the old directions; the vector's part in the span of the new directions is
        kept. The corrections of an epoch cancel as before.

        Args:
            turning: Matrix that turns coordinates along the old directions into coordinates along the new directions, shape
                ``(q, new q)``.
        """
        turns = small(turning)
        self._rows, self._centred, self._mean = (product(part, turns) for part in (self._rows, self._centred, self._mean))
        weights = self._weights * self._known
        self._spread = product(weights, self._centred**2) / weights.sum().clip(torch.finfo(torch.float64).tiny)

    def state_dict(self) -> dict[str, Any]:
        """The whole table, as plain types and tensors."""
        numbers = {name: tensor_of(getattr(self, name)) for name in _NUMBERS}
        return {**{name: getattr(self, name) for name in _PLAIN}, **numbers}

    @classmethod
    def of(cls, state: dict[str, Any], device: torch.device, beta: float, decay: float) -> "CarriedRows":
        """A table that continues from a saved state.

        Args:
            state: What :meth:`state_dict` returned.
            device: Where gradients are.
            beta: See the class.
            decay: See the class.

        Returns:
            The table.
        """
        table = cls.__new__(cls)
        table.beta, table.decay = beta, decay
        for name in _PLAIN:
            setattr(table, name, state[name])
        for name in _NUMBERS:
            setattr(table, name, small(state[name].to(device, copy=True)))
        return table


_PLAIN = ("group", "bounds", "ready", "_length", "_touched", "_fresh", "_trusted")
_NUMBERS = ("_mean", "_weights", "_rows", "_centred", "_known", "_spread")
