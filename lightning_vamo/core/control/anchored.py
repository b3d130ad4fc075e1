r"""SVRG's correction: subtract a control variate made of gradients from the mini-batch gradient, in place."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.control.correction import any_present
from lightning_vamo.core.control.products import can_be_read, sum_of_squares, sums_of_products
from lightning_vamo.core.numerics import at_least_float32
from lightning_vamo.core.sharding import local, shard_group
from lightning_vamo.core.small import Small, small
from lightning_vamo.errors import UnsupportedError


class Fixed(Coefficient):
    r"""A constant coefficient: the same :math:`\alpha` in every step.

    Args:
        alpha: The mixing coefficient.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def factors(self, progress: float) -> float:
        """See :meth:`Coefficient.factors`."""
        return self.alpha


class Falling(Coefficient):
    r"""A coefficient that falls linearly as a snapshot ages, :math:`\alpha = \alpha_0\,(1 - k/K)`.

    Args:
        start: :math:`\alpha_0`.

    References:
        Yin et al., "A Coefficient Makes SVRG Effective", arXiv:2311.05589.
    """

    def __init__(self, start: float = 0.75) -> None:
        self.start = start

    def factors(self, progress: float) -> float:
        """See :meth:`Coefficient.factors`."""
        return self.start * (1 - progress)


class GradientRegression(Coefficient):
    r"""The regression coefficient of the step's gradient on its row: one factor for all parameters.

    With :math:`g_t` the gradient of a step and :math:`r_t` its row, which has mean zero over an epoch, the second moment of
    :math:`g - \alpha r` is least at

    .. math:: \alpha = \frac{\mathbb{E}\langle g, r\rangle}{\mathbb{E}\langle r, r\rangle},

    which is 1 at the snapshot, and 0 where the rows say nothing about the gradient any more. Exponentially weighted sums over
    the steps before stand for the expectations; about the last ``memory`` steps count. While there are few steps, the estimate
    is drawn towards 1, as if ``prior`` steps at the snapshot had been seen before the first step. The estimate is clipped to
    :math:`[0, 1]`. The coefficient depends on earlier steps only, so the corrected gradient stays unbiased.

    Args:
        memory: About how many of the last steps count.
        prior: How many imagined steps with fresh rows the first estimates lean on.
    """

    def __init__(self, memory: int = 100, prior: float = 10.0) -> None:
        self.memory = memory
        # Exponentially weighted sums of <g, r>, <r, r> and 1, and the present weight of the prior.
        self._sums = torch.tensor([0.0, 0.0, 0.0, prior], dtype=torch.float64)

    def factors(self, progress: float = 0.0) -> Tensor:
        """See :meth:`Coefficient.factors`; shape ``(1,)``."""
        product, square, weight, prior = self._sums
        estimate = torch.where(square > 0, product / square.clamp(min=1e-300), 1.0)
        result: Tensor = ((weight * estimate + prior) / (weight + prior)).clamp(0, 1).unsqueeze(0)
        return result

    def see(self, product: Tensor, square: Tensor) -> None:
        r"""Count a step's gradient and row, after the step has read its factor.

        Args:
            product: :math:`\langle g, r\rangle`, shape ``()``. If the product is not finite, the step is left out.
            square: :math:`\langle r, r\rangle`, shape ``()``. If the square is zero, there was no row: the step is left out.
        """
        finite = (product.isfinite() & square.isfinite() & (square > 0)).double()
        self._sums = self._sums.to(product.device)
        seen = torch.stack((product.double(), square.double(), finite, torch.zeros_like(finite)))
        self._sums = self._sums * (1 - finite / self.memory) + torch.where(finite > 0, seen, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The sums of the regression as a tensor."""
        return {"gradients": self._sums}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "GradientRegression":
        """A coefficient that continues with the sums of :meth:`state_dict`."""
        regression = cls()
        regression._sums = state["gradients"]
        return regression


class GradientCorrection:
    r"""Subtracts a control variate made of gradients from ``.grad``.

    .. math:: v = g - \alpha\,r, \qquad
        r = \frac{1}{N} \sum_{k \in \text{step}} \bigl(\nabla f_k(\tilde x) - \nabla f(\tilde x)\bigr)

    where the step accumulates :math:`N` batches, and the loss of each batch was divided by :math:`N`. A parameter whose
    ``.grad`` is None is not corrected: the optimizer step does not touch the parameter either.

    Args:
        parameters: The parameters. Of a sharded parameter this process corrects its own part.
        coefficient: Gives :math:`\alpha`.

    Raises:
        UnsupportedError: If a parameter is complex.
    """

    def __init__(self, parameters: Sequence[Tensor], coefficient: Coefficient) -> None:
        for parameter in parameters:
            if parameter.is_complex():
                raise UnsupportedError(
                    f"Gradients can be corrected for real parameters only, got a parameter of type {parameter.dtype}: freeze"
                    " this parameter, or hold its real and imaginary parts as two parameters."
                )
        self.parameters = parameters
        self.coefficient = coefficient
        self.shards = shard_group(parameters)
        held = [local(parameter) for parameter in parameters]
        # Sums can be read right away on a CPU; in other processes, all have to take part in them.
        self._type = held[0].dtype if self.shards.group is None and can_be_read(held) else None
        self.factors: Tensor | float = 1.0
        """The factor of the row that the last step used."""
        self.usable: Tensor | bool | None = None
        """Whether the row that the last step used was finite, a bool or of shape ``()``; None before the first step."""

    def zeros(self) -> list[Tensor]:
        """A row of zeros: a tensor for each parameter, in a type wide enough to sum gradients."""
        held = [local(parameter) for parameter in self.parameters]
        return [torch.zeros_like(part, dtype=at_least_float32(part.dtype)) for part in held]

    def square(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The squared norm of a gradient over all shards; every process must call this method.

        Args:
            gradients: The gradient, by parameter; None counts as zeros.

        Returns:
            Shape ``()``, float64, the same on every rank.
        """
        held = [local(gradient) for gradient in gradients if gradient is not None]
        if self._reads(held):
            return torch.tensor(sum_of_squares(held), dtype=torch.float64, device="cpu")
        parts = [_dot(part, part).double() for part in held]
        zero = torch.zeros((), dtype=torch.float64, device=local(self.parameters[0]).device)
        return self.shards.total(torch.stack([zero, *parts]).sum())

    def _reads(self, parts: Sequence[Tensor]) -> bool:
        """Whether sums over parts of gradients can be read right away."""
        return self._type is not None and all(part.dtype is self._type and not part.is_neg() for part in parts)

    def _add(self, pairs: Sequence[tuple[Tensor, Tensor]], weight: float) -> bool:
        """Add gradients to sums, unless the gradients are not finite; whether they are finite."""
        finite = math.isfinite(sum_of_squares(part for _, part in pairs))
        if finite and pairs:
            torch._foreach_add_([total for total, _ in pairs], [part for _, part in pairs], alpha=weight)
        return finite

    def add(self, sums: Sequence[Tensor], gradients: Sequence[Tensor | None], weight: Tensor | float) -> Tensor | bool:
        """Add a batch's gradient to the sums over batches, unless it is not finite; every process must call this method.

        Args:
            sums: The sums, as :meth:`zeros` makes them.
            gradients: The gradient, by parameter; None counts as zeros.
            weight: The batch's weight, a number or of shape ``()``.

        Returns:
            Whether it was finite on all shards, a bool or of shape ``()``, the same on every rank.
        """
        pairs = [(total, local(gradient)) for total, gradient in zip(sums, gradients, strict=True) if gradient is not None]
        if self._reads([part for _, part in pairs]):
            return self._add(pairs, float(weight))
        finite: Tensor = self.square(gradients).isfinite()
        for total, part in pairs:
            scaled = part.to(total) * (weight.to(total) if isinstance(weight, Tensor) else weight)
            total.add_(torch.where(finite, scaled, 0.0))
        return finite

    def apply(
        self, row: Sequence[Tensor], scale: Callable[[Tensor], Tensor] | None = None, progress: float = 0.0
    ) -> Small | None:
        """Correct the gradient of one optimizer step, in place.

        Args:
            row: The control variate :math:`r`, by parameter. If the row is not finite, nothing is corrected.
            scale: Scales the row as a GradScaler has scaled the gradients; None if no GradScaler is used.
            progress: Share of the snapshot's steps that has been made.

        Returns:
            Shape ``(2,)``, float64: the squared norm of the gradient, without the scale, and how much of the squared norm the
            correction removed; zeros if these numbers are not finite. None if there is no gradient.

        Raises:
            UnsupportedError: If a gradient is sparse.
        """
        gradients = [parameter.grad for parameter in self.parameters]
        if not any_present(gradients):
            return None
        pairs = [(local(g), part) for g, part in zip(gradients, row, strict=True) if g is not None]
        if self._reads([part for pair in pairs for part in pair]):
            return self._correct(pairs, scale, progress)
        dots = [product for g, r in pairs for product in (_dot(g, g), _dot(g, r), _dot(r, r))]
        products = torch.stack(dots).double().view(-1, 3).sum(dim=0)
        unit = None if scale is None else scale(torch.ones((), device=products.device)).to(products)
        if unit is not None:
            products = products / torch.stack((unit**2, unit, torch.ones_like(unit)))
        products = self.shards.total(products)
        factors = self.coefficient.factors(progress)
        # A regression that has seen no step yet is on the CPU. A number stays on the host: to copy one is to wait for a GPU.
        self.factors = factors.to(products.device) if isinstance(factors, Tensor) else factors
        # Summed over all shards before the test: all shards have to leave out the same rows.
        self.usable = products[2].isfinite()
        removed = self._subtract(pairs, products, unit)
        if isinstance(self.coefficient, GradientRegression):
            self.coefficient.see(products[1], products[2])
        return small(removed)

    def _correct(
        self, pairs: Sequence[tuple[Tensor, Tensor]], scale: Callable[[Tensor], Tensor] | None, progress: float
    ) -> Small:
        """Correct the gradient with numbers that are read on the way, which a CPU need not be waited for."""
        before, product, square = sums_of_products(pairs)
        unit = 1.0 if scale is None else float(scale(torch.ones((), device="cpu")))
        before, product = before / unit**2, product / unit
        self.factors, self.usable = self.coefficient.factors(progress), math.isfinite(square)
        used = float(self.factors) if self.usable else 0.0
        if used:
            torch._foreach_sub_([g for g, _ in pairs], [r for _, r in pairs], alpha=used * unit)
        if isinstance(self.coefficient, GradientRegression):
            self.coefficient.see(*torch.tensor([product, square], dtype=torch.float64, device="cpu"))
        removed = 2 * used * product - used**2 * square if used else 0.0
        return np.array([before, removed] if math.isfinite(before) and math.isfinite(removed) else [0.0, 0.0])

    def _subtract(self, pairs: Sequence[tuple[Tensor, Tensor]], products: Tensor, unit: Tensor | None) -> Tensor:
        """Subtract the row from the gradient; the squared norm of the gradient, and how much of it that removed."""
        assert isinstance(self.usable, Tensor)
        factor = self.usable.double() * (self.factors.reshape(()) if isinstance(self.factors, Tensor) else self.factors)
        scaled = factor if unit is None else factor * unit
        for g, r in pairs:
            g.sub_(torch.where(self.usable, r * scaled.to(r.dtype), 0.0))
        before, product, square = products
        removed = torch.where(self.usable, 2 * factor * product - factor**2 * square, 0.0)
        moments = torch.stack((before, removed))
        return torch.where(moments.isfinite().all(), moments, 0.0)


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The inner product of two tensors of the same shape, computed in float32 at least, shape ``()``."""
    if one.dtype != other.dtype or one.element_size() < 4:
        dtype = at_least_float32(torch.promote_types(one.dtype, other.dtype))
        one, other = one.to(dtype), other.to(dtype)
    return torch.dot(one.reshape(-1), other.reshape(-1))
