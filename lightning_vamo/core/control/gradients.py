r"""A table with the gradient of each batch: SVRG keeps the table if memory allows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import local


class GradientTable:
    r"""A table whose rows are the gradients of the batches, with the rows' weighted mean.

    The control variate of batch :math:`k` is its row against the mean, :math:`r_k = g_k - \bar g` with
    :math:`\bar g = \sum_k w_k g_k / \sum_k w_k`, so that :math:`\sum_k w_k r_k = 0`. :meth:`begin_epoch` computes the mean.
    Rows that :meth:`put` replaces later in the epoch do not change the mean: where each batch comes once per epoch, the rows
    still to be used are old rows, and the mean of the old rows is right for them.

    Where a step accumulates ``group`` batches, only the mean of their gradients is known, so ``group`` consecutive batches of
    the plan share a row. The last row may have fewer batches.

    Args:
        parameters: The parameters. Of a sharded parameter a row has the part of this process.
        weights: Number of samples of each batch, shape ``(K,)``; 0 for a batch that is to have no row.
        group: How many batches share a row.
        dtype: Type of the rows; by default the type of each parameter.
        device: Device of the rows; by default the device of each parameter.

    References:
        Defazio et al., "SAGA", arXiv:1407.0202; Ying et al., "Convergence of variance-reduced stochastic learning under random
        reshuffling", arXiv:1708.01383, whose method AVRG takes the mean of the last epoch too.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        weights: Tensor,
        group: int = 1,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.group = group
        self._length = len(weights)
        self._weights = self._by_row(weights.double())
        self._known = torch.zeros_like(self._weights, dtype=torch.bool)
        self._used = self._known.clone()
        count = len(self._weights)
        held = [local(parameter) for parameter in parameters]
        self._rows = [torch.zeros(count, *part.shape, dtype=dtype or part.dtype, device=device or part.device) for part in held]
        self._mean = [torch.zeros_like(part, dtype=at_least_float32(part.dtype)) for part in held]
        self.ready = False
        """Whether there are rows to correct with; False while the first epoch fills the table."""

    @property
    def unknown(self) -> int:
        """The number of rows that have samples but no finite gradient."""
        return int((~self._known & (self._weights > 0)).sum())

    @staticmethod
    def size(parameters: Sequence[Tensor], count: int, dtype: torch.dtype | None = None) -> int:
        """The memory that a table takes in this process, in bytes.

        Args:
            parameters: See the class.
            count: How many rows there are.
            dtype: See the class.

        Returns:
            The number of bytes.
        """
        held = (local(parameter) for parameter in parameters)
        return count * sum(part.numel() * (dtype or part.dtype).itemsize for part in held)

    def _by_row(self, values: Tensor) -> Tensor:
        """Sums over the batches of each row."""
        padded = values.new_zeros(-(-len(values) // self.group) * self.group)
        padded[: len(values)] = values
        return padded.view(-1, self.group).sum(dim=1)

    def __len__(self) -> int:
        """``K``, the number of batches."""
        return self._length

    def row_of(self, batches: Sequence[int]) -> int | None:
        """The row that some batches share.

        Args:
            batches: Positions of the batches in the plan.

        Returns:
            The row; None if the batches do not share a row, as after a checkpoint that plain training wrote within a step.
        """
        rows = {batch // self.group for batch in batches}
        return rows.pop() if len(rows) == 1 else None

    def put(self, row: int, gradients: Sequence[Tensor | None], factor: float | Tensor, finite: Tensor) -> None:
        """Replace a row.

        Args:
            row: Number of the row, ``0 <= row < K / group``.
            gradients: The gradient, by parameter; None counts as zeros.
            factor: The factor that turns the gradient into the mean gradient of the row's batches.
            finite: Whether the gradient is finite, shape ``()``, the same on every rank. If not, the row stays as it is.
        """
        for rows, gradient in zip(self._rows, gradients, strict=True):
            target = rows[row]
            if gradient is None:
                target.mul_(~finite.to(target.device))
            else:
                new = (local(gradient) * factor).to(target)
                target.copy_(torch.where(finite.to(target.device), new, target))
        self._known[row] |= finite.to(self._known.device)

    def begin_epoch(self) -> None:
        """Compute the mean of the present rows in float64; the coming steps use the rows and the mean."""
        self._used = self._known & (self._weights > 0)
        weights = self._weights * self._used
        shares = (weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)).tolist()
        self.ready = any(shares)
        for mean, rows in zip(self._mean, self._rows, strict=True):
            total = torch.zeros(rows.shape[1:], dtype=torch.float64, device=rows.device)
            for share, row in zip(shares, rows, strict=True):
                if share:
                    total.add_(row, alpha=share)
            mean.copy_(total)

    def add_centred(self, batch: int, into: Sequence[Tensor], factor: float) -> None:
        """Add the control variate of a batch to tensors; add nothing if the batch had no row when the epoch began.

        Args:
            batch: Position of the batch in the plan, ``0 <= batch < len(self)``.
            into: A tensor for each parameter, of the type of the mean.
            factor: Multiplies the control variate.

        Raises:
            IndexError: If the batch is not in the plan.
        """
        if not 0 <= batch < self._length:
            raise IndexError(f"`batch` must be in [0, {self._length}), the batches of the plan, got {batch}.")
        row = batch // self.group
        used = self._used[row]
        for target, rows, mean in zip(into, self._rows, self._mean, strict=True):
            target.add_((rows[row].to(target) - mean) * (used.to(target) * factor))

    def state_dict(self) -> dict[str, Any]:
        """The whole table, as plain types and tensors."""
        return {name: getattr(self, name) for name in _STATE}

    @classmethod
    def of(cls, state: dict[str, Any], parameters: Sequence[Tensor], device: torch.device | None = None) -> "GradientTable":
        """A table that continues from a saved state.

        Args:
            state: What :meth:`state_dict` returned.
            parameters: See the class.
            device: See the class.

        Returns:
            The table.
        """
        table = cls.__new__(cls)
        held = [local(parameter) for parameter in parameters]
        for name in _STATE:
            setattr(table, name, state[name])
        for name in ("_weights", "_known", "_used"):
            setattr(table, name, state[name].to(held[0].device, copy=True))
        # Rows that are on their device already are not copied: there may be memory for one table only.
        table._rows = [rows.to(device or part.device) for rows, part in zip(state["_rows"], held, strict=True)]
        table._mean = [mean.to(part.device, copy=True) for mean, part in zip(state["_mean"], held, strict=True)]
        return table


_STATE = ("group", "ready", "_length", "_weights", "_known", "_used", "_rows", "_mean")
