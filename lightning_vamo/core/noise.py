r"""Gradient noise: its size compared with the gradient, and the share of the noise along given directions.

All estimates come from :math:`n` gradients :math:`g_t` with mean :math:`G` and covariance :math:`\Sigma`, each read once. The
differences

.. math:: h_t = \sqrt{\tfrac{t - 1}{t}} \Bigl(g_t - \frac{1}{t-1} \sum_{s < t} g_s\Bigr), \qquad t = 2 \ldots n,

(Helmert's transform) are uncorrelated, with mean zero and covariance :math:`\Sigma`, and
:math:`\sum_t h_t h_t^\top = \sum_t (g_t - \bar g)(g_t - \bar g)^\top`. So a mean over the differences is the unbiased sample
variance, and has a standard error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_vamo.core.algebra import deflation
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.numerics import at_least_float32


class GradientMoments:
    r"""Computes the mean of gradients and the squared lengths of their noise :math:`h_t`, in memory for ``d`` numbers.

    Args:
        parameters: Tensors that give the gradients' shapes.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.count = 0
        """``n``, the number of gradients so far."""
        self.mean = [torch.zeros_like(p, dtype=at_least_float32(p.dtype), requires_grad=False) for p in parameters]
        """The mean of the gradients."""
        self._squares: list[Tensor] = []

    @torch.no_grad()
    def observe(self, gradients: Sequence[Tensor | None]) -> None:
        """Count a gradient.

        Args:
            gradients: A finite gradient of each parameter, neither kept nor changed; ``None`` stands for zeros.
        """
        self.count += 1
        squares = []
        for mean, gradient in zip(self.mean, gradients, strict=True):
            change = -mean if gradient is None else gradient.to(mean.dtype) - mean
            squares.append(torch.linalg.vector_norm(change, dtype=torch.float64).cpu() ** 2)
            mean.add_(change, alpha=1 / self.count)
        if self.count > 1:
            self._squares.append(torch.stack(squares).sum() * (self.count - 1) / self.count)

    @torch.no_grad()
    def product(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The inner product of the mean with another gradient.

        Args:
            gradients: See :meth:`observe`.

        Returns:
            Shape ``()``, float64, on the CPU.
        """
        pairs = [(mean, gradient) for mean, gradient in zip(self.mean, gradients, strict=True) if gradient is not None]
        dots = [torch.dot(mean.reshape(-1), gradient.to(mean.dtype).reshape(-1)).double().cpu() for mean, gradient in pairs]
        return torch.stack([*dots, torch.zeros((), dtype=torch.float64, device="cpu")]).sum()

    @property
    def squares(self) -> Tensor:
        r""":math:`\lVert h_t \rVert^2`, shape ``(n - 1,)``, float64."""
        return torch.stack(self._squares)


@dataclass(frozen=True)
class Noise:
    r"""The noise of a gradient, compared with the mean gradient.

    Attributes:
        variance: :math:`\operatorname{tr} \Sigma`, estimated without bias.
        signal: :math:`\lVert G \rVert^2`, estimated without bias; the estimate may be below zero if the noise is large.
        signal_error: Approximate standard error of ``signal``.
    """

    variance: float
    signal: float
    signal_error: float

    @property
    def is_known(self) -> bool:
        """Whether the estimate of the signal exceeds its error."""
        return self.signal > 2 * self.signal_error

    @property
    def to_signal(self) -> float:
        r"""The ratio :math:`\operatorname{tr} \Sigma / \lVert G \rVert^2`; if the signal is not known, a lower bound.

        The ratio is the *simple noise scale* in units of a batch: a batch that many times as large has as much signal as noise.

        References:
            McCandlish et al., "An Empirical Model of Large-Batch Training", arXiv:1812.06162, section 2.2 and appendix A.
        """
        signal = self.signal if self.is_known else max(self.signal, 0.0) + 2 * self.signal_error
        return self.variance / signal if signal > 0 else 0.0


def noise_of(squares: Tensor, products: Tensor) -> Noise:
    r"""Estimate the noise of gradients.

    The inner product of a gradient with the mean of *other* gradients estimates :math:`\lVert G \rVert^2` without bias. If
    there are as many other gradients, the error of their mean is about as large as that of the products' mean. So the standard
    error is multiplied by :math:`\sqrt 2`, which is about right if there is a signal, and too large if there is none.

    Args:
        squares: :math:`\lVert h_t \rVert^2` of all gradients.
        products: Inner products of some gradients with the mean of about as many other gradients, shape ``(n,)``, at least 2.

    Returns:
        The estimates.
    """
    error = (2 * products.var() / len(products)).sqrt()
    return Noise(float(squares.mean()), float(products.mean()), float(error))


def nested(directions: ProbeDirections) -> Tensor:
    """The matrix that turns orthonormal coordinates so that the first ``k`` belong to the span of the first ``k`` directions.

    Args:
        directions: The directions, the leading directions first.

    Returns:
        An orthogonal matrix, shape ``(q, q)``, float64, on the CPU. Multiply rows of coordinates by it from the right.
    """
    # Slopes s become coordinates s W, with W = M^{-1/2} of the Gram matrix M; Gram-Schmidt makes s D^T of them.
    whitening = directions.whiten(torch.eye(directions.count, dtype=torch.float64, device="cpu"))
    root = torch.linalg.pinv(whitening)
    turn: Tensor = root @ deflation(root @ root).T
    return turn


def noise_along(coordinates: Tensor) -> Tensor:
    r"""The coordinates of the noise :math:`h_t`.

    Args:
        coordinates: The coordinates of the gradients, shape ``(n, q)``.

    Returns:
        Shape ``(n - 1, q)``, float64.
    """
    wide = coordinates.double()
    before = torch.arange(1, len(wide), dtype=torch.float64, device=wide.device)[:, None]
    return (wide[1:] - wide.cumsum(0)[:-1] / before) * (before / (before + 1)).sqrt()


def removed(coordinates: Tensor, rows: Tensor) -> Tensor:
    r"""How much noise is removed when measured slopes along the first ``1..q`` directions are subtracted.

    Args:
        coordinates: Nested coordinates of gradients, shape ``(n, q)``.
        rows: The measured slopes, before centring, of the same shape; ``coordinates`` itself for exact slopes.

    Returns:
        Shape ``(n - 1, q)``, float64: by how much :math:`\lVert h_t \rVert^2` falls.
    """
    noise, rest = noise_along(coordinates), noise_along(coordinates.double() - rows.double())
    return (noise.square() - rest.square()).cumsum(1)


def ratio(parts: Tensor, wholes: Tensor) -> tuple[Tensor, Tensor]:
    """The ratio of two sums, with its standard error.

    Args:
        parts: Shape ``(m, q)``.
        wholes: The numbers that ``parts`` are parts of, shape ``(m,)``.

    Returns:
        The shares and their errors, shape ``(q,)``.
    """
    total, count = wholes.sum(), len(wholes)
    share = parts.sum(0) / total
    spread = (parts - share * wholes[:, None]).square().sum(0) * count / max(1, count - 1)
    return share, spread.sqrt() / total
