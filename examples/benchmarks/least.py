"""The least loss of a strongly convex model, to which the gaps of trainings are measured."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def least_loss(module: nn.Module, loss: Callable[[], Tensor], convexity: float) -> float:
    """Minimise by LBFGS, in the precision of the module: the loss is strongly convex, so the gradient bounds the error.

    Args:
        module: The module, in float64; its weights are moved to the least loss.
        loss: The loss at the module's weights, over all samples.
        convexity: By how much the loss is strongly convex, such as the factor of half a squared norm that is added.

    Returns:
        The least loss.

    Raises:
        RuntimeError: If the loss may still be 1e-6 above the least.
    """
    optimizer = torch.optim.LBFGS(
        module.parameters(), max_iter=500, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-15
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    value = float(closure())
    square = sum(float(weight.grad.square().sum()) for weight in module.parameters() if weight.grad is not None)
    above = square / (2 * convexity)
    if not above <= 1e-6:
        raise RuntimeError(f"LBFGS has not converged: the loss may be {above:.2g} above its least value.")
    return value
