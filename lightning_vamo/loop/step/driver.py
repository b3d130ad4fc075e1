"""Training steps under manual optimization that behave as automatic ones, with a place to change the gradient."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_loss


class Mode(Enum):
    """What a call of the module's ``training_step`` is for."""

    PLAIN = "run the user's step, and nothing else"
    PROBE = "return the loss to probe"
    STEP = "run the user's step, differentiate its loss, change the gradient, step the optimizer"


class GradientCallback(Callback):
    """Base of the callbacks that own the training steps of a module with the mixin.

    A method of the family says, in :meth:`after_backward`, how it changes the gradient; the rest is done here, so
    that whatever Lightning does around an automatic step happens around this one too.
    """

    def __init__(self) -> None:
        self._mode = Mode.PLAIN
        self._stepped = False
        self._default_dtype = torch.get_default_dtype()
        self.probes_in_float32 = False
        """Whether losses are probed without the mixed precision that the steps run in."""
        self.probed_position = 0
        """Position in the plan of the batch that is being probed, which ``probe_loss`` gets as its ``batch_idx``."""

    @contextmanager
    def mode(self, mode: Mode) -> Iterator[None]:
        """Let calls of ``training_step`` mean ``mode`` for the length of the context."""
        before, self._mode = self._mode, mode
        if mode is Mode.STEP:
            # Read here, since the strategy calls the step inside the precision plugin's context, which may set another.
            self._default_dtype = torch.get_default_dtype()
        try:
            yield
        finally:
            self._mode = before

    @contextmanager
    def stepping(self, trainer: Trainer, module: LightningModule, batch: Any) -> Iterator[None]:
        """Expect one call of ``training_step``, to be driven as a training step.

        Args:
            trainer: The trainer.
            module: Its module.
            batch: The batch to train on.

        Yields:
            Nothing.

        Raises:
            UnsupportedError: If there is none that this callback sees, so that nothing would train.
        """
        self.before_step(trainer, module, batch)
        self._stepped = False
        with self.mode(Mode.STEP):
            yield
        if not self._stepped:
            raise UnsupportedError(
                "`training_step` was replaced on the module or on its class after the VAMOMixin was put in front, so VAMO"
                " does not see it: define it in the class, or replace it before `with_vamo`."
            )

    def drive(self, module: Any, user_step: Callable[[], Any], batch: Any) -> Any:
        """Answer a call of the module's ``training_step``.

        Args:
            module: The module, which has the mixin.
            user_step: The user's own step, with its arguments.
            batch: The batch among them.

        Returns:
            What the call's purpose asks for: the user's return value, a loss to probe, or the outputs of a training step.
        """
        if self._mode is Mode.PLAIN:
            return user_step()
        purpose = self._mode
        # A step may call `super().training_step`, and `probe_loss` calls `training_step`: those are plain calls.
        with self.mode(Mode.PLAIN):
            if purpose is Mode.PROBE:
                float32 = outside_precision_context(module.device, torch.get_default_dtype())
                with float32 if self.probes_in_float32 else nullcontext():
                    return module.probe_loss(batch, self.probed_position)
            return self._step(module, user_step)

    def probed_loss(self, trainer: Trainer, batch: Any, position: int) -> Any:
        """The loss to probe, of a batch on the device; to be called in the mode ``PROBE``.

        Args:
            trainer: The trainer.
            batch: The batch.
            position: What ``probe_loss`` gets as its ``batch_idx``.

        Returns:
            What ``probe_loss`` returns.
        """
        self.probed_position = position
        return compat.run_training_step(trainer, batch, position)

    @property
    def probing(self) -> bool:
        """Whether a sweep is under way."""
        return self._mode is Mode.PROBE

    def before_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Do what a method needs before the step on a batch: its hooks have run, and its forward pass comes next.

        Args:
            trainer: The trainer.
            module: Its module.
            batch: The batch, transferred and transformed.
        """

    def around_backward(self, trainer: Trainer) -> AbstractContextManager[None]:
        """What the backward pass of a batch runs in; nothing unless a method needs to change what it adds to ``.grad``."""
        return nullcontext()

    @abstractmethod
    def after_backward(self, trainer: Trainer, module: LightningModule, *, first: bool, last: bool, skipped: bool) -> None:
        """Change the gradient, in ``.grad``, after the backward pass of a batch.

        Gradients are already averaged over ranks on the ``last`` call, and still scaled under a GradScaler.

        Args:
            trainer: The trainer.
            module: Its module.
            first: Whether the batch is the first of those that the optimizer step accumulates.
            last: Whether the optimizer steps next.
            skipped: Whether the batch added nothing, since ``training_step`` returned None.
        """

    def _step(self, module: LightningModule, user_step: Callable[[], Any]) -> dict[str, Any]:
        self._stepped = True
        trainer = module.trainer
        closure = Closure(self, trainer, module, user_step)
        with outside_precision_context(module.device, self._default_dtype):
            if compat.accumulates(trainer):
                with compat.without_gradient_sync(trainer):
                    closure()
            else:
                # As under automatic optimization: the precision plugin then clips, and skips what it would skip.
                with compat.manual(module, False), compat.counted_step(trainer):
                    optimizer: Any = module.optimizers()
                    module.optimizer_step(trainer.current_epoch, trainer.fit_loop.batch_idx, optimizer, closure)
        return closure.outputs


class Closure:
    """Forward, zero_grad, backward and the change of the gradient, in the order of Lightning's automatic closure."""

    def __init__(
        self, driver: GradientCallback, trainer: Trainer, module: LightningModule, user_step: Callable[[], Any]
    ) -> None:
        self._driver = driver
        self._trainer = trainer
        self._module = module
        self._user_step = user_step
        self._outputs: dict[str, Any] | None = None

    @property
    def outputs(self) -> dict[str, Any]:
        """What callbacks get as the outputs of the step."""
        if self._outputs is None:
            raise UnsupportedError(
                "The optimizer step did not call its closure, so there is no gradient: call `optimizer_closure()` in your"
                " `optimizer_step` hook, or use an optimizer whose `step(closure)` calls it."
            )
        return self._outputs

    @torch.enable_grad()
    def __call__(self) -> Tensor | None:
        """Evaluate the step; returns its loss."""
        trainer = self._trainer
        if self._outputs is not None:
            raise UnsupportedError(
                f"{type(trainer.optimizers[0]).__name__} evaluates its closure more than once per step; VAMO corrects one"
                " gradient per step. Use an optimizer that evaluates it once, such as SGD or AdamW. The weights are those in"
                " the middle of its first step."
            )
        with trainer.precision_plugin.train_step_context():
            output = self._user_step()
        loss, self._outputs = compat.step_output(output, trainer.accumulate_grad_batches)
        if not compat.skips_backward(trainer):
            check_loss(trainer, self._module, loss)
        if loss is None:
            rank_zero_warn("`training_step` returned None: the batch is skipped. If that is on purpose, ignore this warning.")
        if not compat.skips_backward(trainer):
            self._backward(loss)
        return self._outputs.get("loss")

    def _backward(self, loss: Tensor | None) -> None:
        trainer, module = self._trainer, self._module
        batch_idx = trainer.fit_loop.batch_idx
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if first:
            compat.zero_grad(trainer, module, batch_idx)
        if loss is not None:
            with compat.manual(module), self._driver.around_backward(trainer):
                module.manual_backward(loss)
        self._driver.after_backward(trainer, module, first=first, last=not compat.accumulates(trainer), skipped=loss is None)


@contextmanager
def outside_precision_context(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Undo the context that the strategy runs ``training_step`` in: automatic steps run only their forward pass there."""
    inside = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(inside)
