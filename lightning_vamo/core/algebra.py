"""Linear algebra on small float64 matrices, to orthonormalise directions and to truncate products of thin factors."""

import torch
from torch import Tensor


def square(rows: Tensor) -> Tensor:
    """The inner products of all pairs of rows.

    Args:
        rows: Shape ``(k, n)``.

    Returns:
        Shape ``(k, k)``, float64.
    """
    wide = rows.double()
    return wide @ wide.t()


def inverse_root(gram: Tensor, cutoff: float = 1e-10) -> Tensor:
    r"""The pseudo-inverse of the square root, :math:`M^{-1/2}`.

    Args:
        gram: :math:`M`, symmetric, positive semidefinite, shape ``(..., k, k)``.
        cutoff: Eigenvalues up to this share of the largest count as zero.

    Returns:
        A symmetric matrix of the same shape.
    """
    values, vectors = torch.linalg.eigh(gram)
    result: Tensor = (vectors * _roots(values, cutoff)[1].unsqueeze(-2)) @ vectors.mT
    return result


def deflation(gram: Tensor, cutoff: float = 1e-10) -> Tensor:
    """The matrix of Gram-Schmidt: from each vector, subtract the part in the span of the vectors before, then normalise.

    Args:
        gram: Inner products of the vectors, shape ``(q, q)``.
        cutoff: A remaining part whose squared norm is at most this share of the largest vector's counts as zero.

    Returns:
        Lower triangular, shape ``(q, q)``.
    """
    result = torch.zeros_like(gram)
    for index in range(len(gram)):
        row = torch.zeros_like(gram[0])
        row[index] = 1
        for _ in range(2):  # twice, since rounding leaves a small part of nearly parallel vectors
            row = row - (result @ gram @ row) @ result
        norm = row @ gram @ row
        result[index] = row / norm.sqrt() if norm > cutoff * gram.diagonal().max() else 0.0
    return result


def _roots(values: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Square roots and inverse square roots of ascending eigenvalues; zeros for eigenvalues that count as zero."""
    counted = values > cutoff * values[..., -1:].clamp(min=0)
    return torch.where(counted, values, 0.0).sqrt(), torch.where(counted, values, torch.inf).rsqrt()


def leading(gram: Tensor, cutoff: float = 1e-12) -> Tensor:
    r"""The matrix that combines vectors into orthonormal vectors, ordered by decreasing variance.

    Args:
        gram: Inner products of the vectors :math:`y_j`, shape ``(q, q)``.
        cutoff: Variances up to this share of the largest count as zero, and get no vector.

    Returns:
        ``R``, shape ``(q, k)``, :math:`k \le q`, for the vectors :math:`\sum_j R_{jk} y_j`.
    """
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    count = int((values > cutoff * values[0]).sum())
    result: Tensor = vectors[:, :count] / values[:count].sqrt()
    return result


def damped_inverse(cross: Tensor, scale: Tensor, damping: float) -> Tensor:
    r"""A damped inverse: the less of a matrix a sketch has seen, the stronger the damping.

    .. math:: c^{+} = \frac{(1 + \tau^2)\, c}{c^2 + \tau^2 s} \quad\text{for numbers, which is } 1/c \text{ where } s = c^2

    Args:
        cross: :math:`c`, shape ``(..., r, r)``.
        scale: :math:`s` of each column, at least :math:`c^2` for numbers, shape ``(..., r)``.
        damping: :math:`\tau`.

    Returns:
        Shape ``(..., r, r)``; without damping the pseudo-inverse.
    """
    units = torch.where(scale > 0, scale, torch.inf) ** -0.25
    u, s, vh = torch.linalg.svd(cross * units[..., None] * units[..., None, :])
    inverse = torch.where(s > 0, (1 + damping**2) * s / (s**2 + damping**2), 0.0)
    result: Tensor = (vh.mT * inverse.unsqueeze(-2)) @ u.mT * units[..., None] * units[..., None, :]
    return result


def truncated(left: Tensor, core: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""The best approximation of low rank to products :math:`P C_k Q^\top` with the same thin factors.

    Args:
        left: Inner products of the columns of :math:`P`, shape ``(n, m, m)`` for ``n`` matrices.
        core: :math:`C_k`, shape ``(n, count, m, m)``.
        right: Inner products of the columns of :math:`Q`, shape ``(n, m, m)``.
        rank: The rank.

    Returns:
        ``X``, ``s`` and ``Y`` of the approximations :math:`(P X_k) \operatorname{diag}(s_k) (Q Y_k)^\top`, where :math:`P X_k`
        and :math:`Q Y_k` have orthonormal columns: shapes ``(n, count, m, rank)``, ``(n, count, rank)`` and that of ``X``.
    """
    # The orthonormal factors of P and Q, as the eigenvectors of their Gram matrices.
    (p, p_root, p_inverse), (q, q_root, q_inverse) = _spectrum(left), _spectrum(right)
    inner = (p * p_root[..., None, :]).mT[:, None] @ core @ (q * q_root[..., None, :])[:, None]
    u, s, vh = torch.linalg.svd(inner)
    x = (p * p_inverse[..., None, :])[:, None] @ u[..., :rank]
    y = (q * q_inverse[..., None, :])[:, None] @ vh.mT[..., :rank]
    return x, s[..., :rank], y


def _spectrum(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors, square roots of the eigenvalues, and inverse square roots."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors, *_roots(values, 1e-14)
