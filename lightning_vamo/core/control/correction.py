r"""VAMO's gradient: subtract the control variate from the mini-batch gradient, in place."""

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
    r"""Corrects the gradients in ``.grad`` with the control variate of the batches that gave the gradients.

    .. math:: v = g - \frac{1}{N} \sum_{k \in \text{step}} \sum_j r_{k,j}\, u_j

    where the step accumulates :math:`N` batches, and the loss of each batch was divided by :math:`N`. A parameter whose
    ``.grad`` is None is not corrected: the optimizer step does not touch the parameter either.

    Args:
        parameters: The parameters, in the order in which the directions were drawn.
        directions: The ``q`` directions :math:`u_j`.
        control: The rows, which give the coefficients :math:`r_{k,j}`. If ``control.beta`` is zero, gradients are not touched.
            Rows that want the slopes of each step's gradient are refreshed with these slopes.
        own: This rank's part of a table, where gradients are averaged over ranks; ``control`` is the mean over the ranks.
        coefficient: Factors that multiply the rows and change from step to step; by default 1.
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
        r"""Keep this rank's part of a row out of the correction, while the other ranks correct as usual.

        All ranks will subtract :math:`\sum_j r_{k,j} u_j` from the mean of their gradients. This rank's part of the sum is
        :math:`\frac{1}{W} \sum_j r^{\text{own}}_{k,j} u_j`. So :math:`\sum_j r^{\text{own}}_{k,j} u_j` is added to this rank's
        gradient before the ranks' gradients are averaged. A parameter that the batch does not use stays as it is.

        Args:
            row: Position in the plan of the batch whose backward pass runs in the context.
            accumulated: The number that the batch's loss is divided by.
            scale: Scales the coefficients as a GradScaler scales the loss; None if no GradScaler is used.
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
            rows: The keys by which ``control`` knows the rows of the batches whose gradients were accumulated, such as
                positions in the plan.
            accumulated: ``N``, the number that the loss of each batch was divided by.
            scale: Scales the coefficients as a GradScaler has scaled the gradients; None if no GradScaler is used.
            progress: Share of the snapshot's batches that has been trained on.
            slopes: The slopes of the gradients, without the scale, along the directions, if they are known already.

        Returns:
            Shape ``(2,)``, float64: the squared norm of the gradient, without the scale, and how much of the squared norm the
            correction removed; zeros if these numbers are not finite. For sharded gradients, the share of this process: see
            :meth:`total`. None if there is no gradient to correct, or no row yet to correct the gradient with.

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
            # Measured before the correction. The slopes change the factors and the rows of later steps only.
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
        """Add up the results of :meth:`apply` over all shards; every process must call this method.

        Args:
            moments: Shape ``(2,)``: the figures of one step, or the sum over several.

        Returns:
            Shape ``(2,)``; ``moments`` itself if gradients are not sharded.
        """
        return self.directions.shards.total(moments)


def any_present(gradients: Sequence[Tensor | None]) -> bool:
    """Tell whether there is a gradient, and refuse sparse gradients, which cannot be projected on directions.

    Args:
        gradients: The gradients.

    Returns:
        False if all are None.

    Raises:
        UnsupportedError: If a gradient is sparse.
    """
    present = False
    for gradient in gradients:
        if gradient is not None:
            present = True
            if gradient.is_sparse:
                raise UnsupportedError(
                    "A parameter has a sparse gradient, which cannot be corrected: pass `sparse=False` to the embedding layer."
                )
    return present


def _added_once(part: Tensor) -> Callable[[Tensor], Tensor | None]:
    """A hook that adds ``part`` to the first gradient only: reentrant checkpointing makes several per backward pass."""
    parts = [part]
    return lambda gradient: gradient + parts.pop() if parts else None
