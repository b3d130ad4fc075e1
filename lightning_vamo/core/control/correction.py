r"""VAMO's gradient: the mini-batch gradient with the control variate taken out, in place."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.core.control.coefficients import Coefficient, Constant
from lightning_vamo.core.control.rows import Rows
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.slopes import Slopes
from lightning_vamo.core.small import Small, all_finite, finite_or_zero, placed, small, stacked, tensor_of
from lightning_vamo.errors import UnsupportedError


class Correction:
    r"""Corrects the gradients in ``.grad`` with the control variate of the batches that they come from.

    .. math:: v = g - \frac{1}{N} \sum_{k \in \text{step}} \sum_j r_{k,j}\, u_j

    where the step accumulates :math:`N` batches, each of whose losses was divided by :math:`N`. A parameter whose ``.grad``
    is None stays out: the step does not touch it.

    Args:
        parameters: The parameters, in the order in which the directions were drawn.
        directions: The ``q`` directions :math:`u_j`.
        control: Gives the coefficients :math:`r_{k,j}` of a row. If its ``beta`` is zero, gradients are not touched at all.
            Rows that want the slopes of each step's gradient are refreshed with them.
        own: This rank's part of a table, where gradients are averaged over ranks; ``control`` is the mean over the ranks.
        coefficient: Factors of the rows that change from step to step; by default there are none.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        directions: ProbeDirections,
        control: Rows,
        own: ControlVariate | None = None,
        coefficient: Coefficient | None = None,
    ) -> None:
        self.parameters = parameters
        self.directions = directions
        self.control = control
        self.own: Rows = control if own is None else own
        self.coefficient = Constant() if coefficient is None else coefficient
        self.used: Small = 1.0
        """The factors of the rows that the last step used, as numbers for :mod:`~lightning_vamo.core.small` arithmetic."""

    @contextmanager
    def withheld(
        self, row: int, accumulated: int = 1, scale: Callable[[Tensor], Tensor] | None = None, progress: float = 0.0
    ) -> Iterator[None]:
        r"""Keep this rank's part of a row out of the correction, without the other ranks having to know.

        All ranks will subtract :math:`\sum_j r_{k,j} u_j` from the mean of their gradients, of which this rank contributed
        :math:`\frac{1}{W} \sum_j r^{\text{own}}_{k,j} u_j`. So this rank's gradient gets
        :math:`+\sum_j r^{\text{own}}_{k,j} u_j` before it is averaged. A parameter that the batch does not use stays as it is.

        Args:
            row: Position in the plan of the batch whose backward pass the context is around.
            accumulated: The number that its loss is divided by.
            scale: Scales the coefficients as the loss is scaled, where a GradScaler does so.
            progress: See :meth:`apply`.

        Yields:
            Nothing.
        """
        coefficients = tensor_of(self._weighted(self._row(self.own, [row], accumulated), progress))
        share = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.directions.subtract_(share, -coefficients if scale is None else -scale(coefficients))
        # Hooks, rather than an addition to `.grad`: a parameter without a gradient on the other ranks must not get one here.
        hooks = [
            parameter.register_hook(_added_once(part))  # type: ignore[no-untyped-call]
            for parameter, part in zip(self.parameters, share, strict=True)
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def apply(
        self,
        rows: Sequence[Any],
        accumulated: int = 1,
        scale: Callable[[Tensor], Tensor] | None = None,
        progress: float = 0.0,
        slopes: Slopes | None = None,
    ) -> Tensor | None:
        """Correct the gradients of one optimizer step, in place.

        Args:
            rows: The rows of the batches whose gradients were accumulated, as ``control`` takes them: positions in the plan.
            accumulated: ``N``, the number that each of their losses was divided by.
            scale: Scales the coefficients as the gradients are scaled, where a GradScaler did so.
            progress: Share of the snapshot's batches that has been trained on.
            slopes: What the gradients, without the scale, are along the directions, if that is known already.

        Returns:
            Shape ``(2,)``, float64: the squared norm of the gradient, without the scale, and how much of it the correction
            removed; zeros if they are not finite. Of sharded gradients, the share of this process: see :meth:`total`. None if
            there was nothing to correct, or nothing yet to correct with.

        Raises:
            UnsupportedError: If a gradient is sparse.
        """
        moments = self.remove(rows, accumulated, scale, progress, slopes)
        return None if moments is None else tensor_of(moments)

    def remove(
        self,
        rows: Sequence[Any],
        accumulated: int = 1,
        scale: Callable[[Tensor], Tensor] | None = None,
        progress: float = 0.0,
        slopes: Slopes | None = None,
    ) -> Small | None:
        """Like :meth:`apply`, with a result for :mod:`~lightning_vamo.core.small` arithmetic.

        Args:
            rows: See :meth:`apply`.
            accumulated: See :meth:`apply`.
            scale: See :meth:`apply`.
            progress: See :meth:`apply`.
            slopes: See :meth:`apply`.

        Returns:
            See :meth:`apply`.

        Raises:
            UnsupportedError: See :meth:`apply`.
        """
        gradients, control = [parameter.grad for parameter in self.parameters], self.control
        if not rows or control.beta == 0 or not any_present(gradients):
            return None
        row = self._row(control, rows, accumulated)
        weights, unit = self._weighted(row, progress), 1.0
        if scale is not None:
            coefficients = tensor_of(weights)
            weights, unit = small(scale(coefficients)), small(scale(torch.ones((), device=coefficients.device)))
        if control.wants_slopes or self.coefficient.wants_slopes:
            # Of what the gradient is before its correction; they change the factors, and the rows, of later steps only.
            if slopes is None:
                slopes = self.directions.measure(gradients).times(1 / unit)
            control.refresh(rows, slopes, accumulated)
            if control.ready:
                self.coefficient.observe(slopes, row)
        if not control.ready:
            return None
        if scale is not None and slopes is not None:
            slopes = slopes.times(unit)
        square, product, step = self.directions.remove_(gradients, weights, slopes)
        removed = 2 * product - step
        moments = stacked(square, removed) if scale is None else stacked(square, removed) / unit**2
        finite = all_finite(moments)
        return moments if finite is True else finite_or_zero(moments, finite)

    @staticmethod
    def _row(control: Rows, keys: Sequence[Any], accumulated: int) -> Small:
        """The mean row of a step's batches."""
        if len(keys) == accumulated == 1:
            return control.row(keys[0])
        return stacked(*[control.row(key) for key in keys]).sum(0) / accumulated

    def _weighted(self, row: Small, progress: float) -> Small:
        """A row with the factors of the coming step."""
        factors = self.coefficient.numbers(progress, self.control.spread)
        if not isinstance(factors, float) and isinstance(row, Tensor):
            factors = placed(factors, row.device)
        self.used = factors
        return row * factors

    @property
    def factors(self) -> Tensor | float:
        """The factors of the rows that the last step used."""
        return self.used if isinstance(self.used, float) else tensor_of(self.used)

    def total(self, moments: Tensor) -> Tensor:
        """Add up over all shards what :meth:`apply` returned; every process must call it.

        Args:
            moments: Shape ``(2,)``: the figures of one step, or the sum over several.

        Returns:
            Shape ``(2,)``; what was given where gradients are not sharded.
        """
        return self.directions.shards.total(moments)


def check_dense(gradients: Sequence[Tensor | None]) -> None:
    """Refuse gradients that have no numbers to project on directions.

    Args:
        gradients: The gradients.

    Raises:
        UnsupportedError: If one is sparse.
    """
    any_present(gradients)


def any_present(gradients: Sequence[Tensor | None]) -> bool:
    """Whether there is a gradient; refuses sparse ones as :func:`check_dense` does.

    Args:
        gradients: The gradients.

    Returns:
        False if all are None.

    Raises:
        UnsupportedError: If one is sparse.
    """
    present = False
    for gradient in gradients:
        if gradient is not None:
            present = True
            if gradient.is_sparse:
                raise UnsupportedError("A parameter has a sparse gradient, which VAMO cannot correct: set `sparse=False`.")
    return present


def _added_once(part: Tensor) -> Callable[[Tensor], Tensor | None]:
    """A hook that adds ``part`` to the first gradient: reentrant checkpointing gives a parameter several in one pass."""
    parts = [part]
    return lambda gradient: gradient + parts.pop() if parts else None
