"""The closure of an optimizer step: evaluate the step's last batch, then correct the gradient."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.gradient.base import Evaluated, Gradient, Step


class Closure:
    """Evaluates a batch, in the order of Lightning's automatic closure.

    Args:
        step: The batch.
        gradient: Where the gradient comes from.
        after: Called when the batch's gradient is in ``.grad``.
        name: Name of the callback, for messages.
    """

    def __init__(self, step: Step, gradient: Gradient, after: Callable[[Evaluated], None], name: str) -> None:
        self._step = step
        self._gradient = gradient
        self._after = after
        self._name = name
        self._outputs: dict[str, Any] | None = None

    @property
    def outputs(self) -> dict[str, Any]:
        """The outputs of the step for callbacks.

        Raises:
            UnsupportedError: If the optimizer did not evaluate the closure.
        """
        if self._outputs is None:
            raise UnsupportedError(
                "The optimizer step did not call its closure, so there is no gradient: call `optimizer_closure()` in your"
                " `optimizer_step` hook, or use an optimizer whose `step(closure)` calls the closure."
            )
        return self._outputs

    @torch.enable_grad()
    def __call__(self) -> Tensor | None:
        """Evaluate the batch.

        Returns:
            The loss of the batch; None if there is no loss.

        Raises:
            UnsupportedError: If the closure is called a second time.
        """
        step = self._step
        if self._outputs is not None:
            raise UnsupportedError(
                f"{type(step.trainer.optimizers[0]).__name__} evaluates its closure more than once per step, but {self._name}"
                " computes one gradient per step: use an optimizer that evaluates its closure once, such as SGD or AdamW. The"
                " optimizer was stopped within its first step, so the weights may have changed."
            )
        if compat.skips_backward(step.trainer):
            with compat.step_context(step.trainer):
                output = step.user_step()
            _, self._outputs = compat.step_output(output, step.trainer.accumulate_grad_batches)
        else:
            evaluated = self._gradient.accumulate(step)
            self._outputs = evaluated.outputs
            self._after(evaluated)
        return self._outputs.get("loss")
