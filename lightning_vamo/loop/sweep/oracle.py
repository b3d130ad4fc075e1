"""The oracle: the only way in which the package evaluates a user's loss."""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_vamo.core.probes.difference import as_tensor
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_none
from lightning_vamo.loop.sweep.precision import arithmetic, outside_precision_context
from lightning_vamo.loop.sweep.progress import nothing

Answer = Callable[[Any, Callable[[], Any], Any], Any]
"""Answers a call of ``training_step``: it gets the module, the user's step with its arguments, and the batch among them."""


def check_differentiates(error: BaseException | None) -> None:
    """Explain torch's error where a step differentiates, but is evaluated without gradients.

    Args:
        error: An error of an evaluation; None for none.

    Raises:
        UnsupportedError: If it is torch's error about tensors without gradients.
    """
    if isinstance(error, RuntimeError) and "does not require grad" in str(error):
        raise UnsupportedError(
            "`training_step` differentiates, by `torch.autograd.grad` or `backward`, but is evaluated without gradients here:"
            " define `probe_loss(batch, batch_idx)` on the module, which may do the same in `with torch.enable_grad():`."
        ) from error


class Oracle:
    """Evaluates the loss that is probed: it calls the user's ``probe_loss`` through the strategy.

    Args:
        trainer: The trainer.
        module: Its module, which has the mixin.
        answering: Makes a context in which a given function answers the calls of the module's ``training_step``.
        float32: Whether to leave the mixed precision that the training steps run in.

    Attributes:
        trainer: The trainer.
        module: The module.
        advance: Called before each evaluation, for a clock.
        arithmetic: The type whose machine epsilon is the rounding error of losses; None for the type of the parameters.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: LightningModule,
        answering: Callable[[Answer], AbstractContextManager[None]],
        *,
        float32: bool = False,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.advance: Callable[[], object] = nothing
        self._own_loss = type(module).has_own_probe_loss()  # type: ignore[attr-defined]
        self._answering = answering
        self._float32 = float32
        self.arithmetic = arithmetic(trainer, "32-true" if float32 else None)
        self._position = 0

    @contextmanager
    def counting(self, show: Callable[[int], None]) -> Iterator[None]:
        """Count the evaluations in the context.

        Args:
            show: Called before each evaluation, with the number of evaluations so far, including the coming one.

        Yields:
            Nothing.
        """
        if show is nothing:
            yield
            return
        before, count = self.advance, itertools.count(1)

        def advance() -> None:
            before()
            show(next(count))

        self.advance = advance
        try:
            yield
        finally:
            self.advance = before

    def loss(self, batch: Any, position: int) -> Any:
        """Evaluate a batch at the present parameters.

        Args:
            batch: The batch, on the module's device.
            position: The batch's position in the plan, which ``probe_loss`` gets as ``batch_idx``.

        Returns:
            The return value of ``probe_loss``: a number as a tensor, or None if the batch is to be skipped.

        Raises:
            UnsupportedError: If ``training_step`` returns None on one of several ranks, or needs gradients itself.
            RuntimeError: If the step raises such an error for another reason.
        """
        if self.advance is not nothing:
            self.advance()
        try:
            if self._float32 or self._has_own_loss:
                self._position = position
                with self._answering(self._probe):
                    value = compat.run_training_step(self.trainer, batch, position)
            else:  # what the mixin's `probe_loss` comes to, by a shorter way
                value = compat.step_loss(self._step(batch, position))
        except RuntimeError as error:
            check_differentiates(error)
            raise
        if value is None and not self._own_loss:
            check_none(self.trainer)
        return value

    @property
    def _has_own_loss(self) -> bool:
        return self._own_loss or "probe_loss" in vars(self.module)

    @functools.cached_property
    def _step(self) -> Callable[[Any, int], Any]:
        return compat.own_steps(self.trainer, self.module)

    def _probe(self, module: Any, user_step: Callable[[], Any], batch: Any) -> Any:
        dtype = torch.get_default_dtype()
        with outside_precision_context(module.device, dtype) if self._float32 else nullcontext():
            if not self._has_own_loss:
                return compat.step_loss(user_step())
            return as_tensor(module.probe_loss(batch, self._position), module.device)
