"""A slow oracle in float64 numpy that is meant to be obviously correct. It shares no code with the package.

A point of R^d is one flat vector here: the parameters flattened row by row and concatenated in order. The only thing asked of
the package is where it moves to, `directions.move`, from which `matrix` reads off the directions.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Vector = np.ndarray
Function = Callable[[Vector], float]


def flatten(tensors: Sequence[Tensor | None], like: Sequence[Tensor] | None = None) -> Vector:
    """One flat float64 vector; a None becomes zeros of the shape of its counterpart in `like`."""
    parts = []
    for position, tensor in enumerate(tensors):
        if tensor is None:
            assert like is not None
            tensor = torch.zeros(like[position].shape)
        parts.append(np.array(tensor.detach().double().tolist(), dtype=np.float64).reshape(-1))
    return np.concatenate(parts)


def matrix(directions, parameters: Sequence[Tensor]) -> np.ndarray:
    """The q x d matrix U whose rows are the directions: where a unit step from the origin ends."""
    rows = []
    for index in range(directions.count):
        origin = [torch.zeros(p.shape, dtype=p.dtype) for p in parameters]
        end = [torch.full(p.shape, 7.0, dtype=p.dtype) for p in parameters]
        directions.move(end, origin, index, 1.0)
        rows.append(flatten(end))
    return np.stack(rows)


def probe_losses(f: Function, x: Vector, u: np.ndarray, mu: float, difference: str) -> Vector:
    """f at x, then at x + mu u_j for each j, then, for central differences, at x - mu u_j for each j."""
    values = [f(x)]
    for row in u:
        values.append(f(x + mu * row))
    if difference == "central":
        for row in u:
            values.append(f(x - mu * row))
    return np.array(values)


def probe_differences(f: Function, x: Vector, u: np.ndarray, mu: float, difference: str) -> Vector:
    """The finite-difference slopes of f at x along each row of u."""
    slopes = []
    for row in u:
        if difference == "forward":
            slopes.append((f(x + mu * row) - f(x)) / mu)
        else:
            slopes.append((f(x + mu * row) - f(x - mu * row)) / (2 * mu))
    return np.array(slopes)


def estimate_gradient(f: Function, x: Vector, u: np.ndarray, mu: float, difference: str) -> Vector:
    """The multi-point estimator (d/q) sum_j delta_j u_j; with one row, the two-point estimator."""
    count, dimension = u.shape
    estimate = np.zeros(dimension)
    for slope, row in zip(probe_differences(f, x, u, mu, difference), u, strict=True):
        estimate += dimension / count * slope * row
    return estimate


def vamo_gradient(gradient: Vector, own: Vector, mean: Vector, alpha: float) -> Vector:
    """v = g - alpha (zeroth-order estimate of the batch - zeroth-order estimate of the whole), as the paper writes it."""
    return gradient - alpha * (own - mean)


def weighted_mean(rows: np.ndarray, weights: Sequence[float]) -> Vector:
    """The mean of the rows, each counted as often as its weight says."""
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total += weight * row
    return total / sum(weights)


def least_squares_loss(a: np.ndarray, b: Vector, x: Vector) -> float:
    """Half the mean squared residual."""
    return float(np.mean((a @ x - b) ** 2) / 2)


def least_squares_gradient(a: np.ndarray, b: Vector, x: Vector) -> Vector:
    """Its gradient."""
    return a.T @ (a @ x - b) / len(b)


def logistic_loss(a: np.ndarray, b: Vector, x: Vector) -> float:
    """Mean logistic loss for labels b of -1 and +1."""
    return float(np.mean(np.log1p(np.exp(-b * (a @ x)))))


def logistic_gradient(a: np.ndarray, b: Vector, x: Vector) -> Vector:
    """Its gradient."""
    return -a.T @ (b / (1 + np.exp(b * (a @ x)))) / len(b)


def sgd(a: np.ndarray, b: Vector, x: Vector, plans: Sequence[Sequence[Sequence[int]]], rate: float) -> np.ndarray:
    """SGD on least squares; one row per step. A plan is one epoch: a list of batches, each a list of rows of the data."""
    trajectory = []
    for plan in plans:
        for batch in plan:
            x = x - rate * least_squares_gradient(a[batch], b[batch], x)
            trajectory.append(x)
    return np.stack(trajectory)


def fo_svrg(a: np.ndarray, b: Vector, x: Vector, plans: Sequence[Sequence[Sequence[int]]], rate: float) -> np.ndarray:
    """First-order SVRG on least squares with a snapshot at each epoch's start; one row per step."""
    trajectory = []
    for plan in plans:
        snapshot = x
        full = least_squares_gradient(a, b, snapshot)
        for batch in plan:
            now = least_squares_gradient(a[batch], b[batch], x)
            then = least_squares_gradient(a[batch], b[batch], snapshot)
            x = x - rate * (now - then + full)
            trajectory.append(x)
    return np.stack(trajectory)


def carried(
    a: np.ndarray,
    b: Vector,
    x: Vector,
    plans: Sequence[Sequence[Sequence[int]]],
    rate: float,
    group: int = 1,
    decay: float = 0.0,
) -> np.ndarray:
    """Least squares with each step's gradients of the epochs before for its control variate; one row per step.

    A row is the mean of the old row, which has the weight ``decay``, and of the gradient. A step is the mean over ``group``
    batches, the same ones in each plan in any order; the first epoch trains plainly.
    """
    trajectory, last = [], {}
    for plan in plans:
        steps = [plan[start : start + group] for start in range(0, len(plan), group)]
        sizes = {key(step): sum(map(len, step)) for step in steps}
        mean = sum(sizes[k] * row for k, row in last.items()) / sum(sizes.values())
        fresh = {}
        for step in steps:
            gradient = np.mean([least_squares_gradient(a[batch], b[batch], x) for batch in step], axis=0)
            corrected = gradient - last[key(step)] + mean if last else gradient
            fresh[key(step)] = decay * last[key(step)] + (1 - decay) * gradient if last else gradient
            x = x - rate * corrected * len(step) / group
            trajectory.append(x)
        last = fresh
    return np.stack(trajectory)


def key(step: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """What tells a step's batches from those of others."""
    return tuple(tuple(batch) for batch in step)


def gradient_noise(gradients: np.ndarray) -> np.ndarray:
    """Samples of the noise in gradients that follow each other, one per row: (g_t - g_{t-1}) / sqrt(2)."""
    return np.stack([(now - last) / np.sqrt(2) for last, now in itertools.pairwise(gradients)])


def power_iteration(u: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """One step of block power iteration on the covariance of the noise: orthonormal rows, the leading ones first."""
    product = np.zeros_like(u)
    for z in noise:
        product += np.outer(u @ z, z)
    return np.linalg.svd(product, full_matrices=False)[2]


def principal_directions(noise: np.ndarray, count: int) -> np.ndarray:
    """The directions of the most variance, as orthonormal rows."""
    return np.linalg.svd(noise, full_matrices=False)[2][:count]


def orthonormal_basis(u: np.ndarray) -> np.ndarray:
    """The rows of (U U^T)^(-1/2) U: of all orthonormal bases of the span, the one that is closest to U."""
    values, vectors = np.linalg.eigh(u @ u.T)
    return vectors @ np.diag(values**-0.5) @ vectors.T @ u


def share_removed(u: np.ndarray, noise: np.ndarray) -> float:
    """The share of the noise's variance in the span of the rows of U."""
    basis = np.linalg.qr(u.T)[0]
    return float(np.sum((noise @ basis) ** 2) / np.sum(noise**2))


def corrected(
    gradient: Vector, basis: np.ndarray, rows: np.ndarray, accumulated: int, factors: Vector, present: Vector, scale: float
) -> Vector:
    """A step's gradient, with loss scale, without the mean row of its batches along the basis.

    ``present`` is 1 for the numbers of parameters that have a gradient, and 0 for others, which stay as they are.
    """
    mean = rows.sum(axis=0) / accumulated
    return gradient - scale * (factors * mean) @ basis * present
