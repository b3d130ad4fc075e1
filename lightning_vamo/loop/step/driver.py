"""Training steps under manual optimization that behave like automatic steps and let a method change the gradient."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.gradient.base import Evaluated, Gradient, Step
from lightning_vamo.loop.ledger.seeds import Seeds
from lightning_vamo.loop.step.closure import Closure
from lightning_vamo.loop.sweep.oracle import Answer
from lightning_vamo.loop.sweep.precision import outside_precision_context


class Driver:
    """Answers the calls of a module's ``training_step``: with the user's own step, unless a context sets another answer."""

    def __init__(self) -> None:
        self._answer: Answer | None = None

    @property
    def answers(self) -> bool:
        """Whether calls get another answer than the user's own step."""
        return self._answer is not None

    def answering(self, answer: Answer | None) -> AbstractContextManager[None]:
        """Set the answer to calls of ``training_step`` for the length of the context.

        Args:
            answer: Gets the module, the user's step with its arguments, and the batch; None for plain calls.

        Returns:
            The context.
        """
        return compat.replaced(self, "_answer", answer)

    def drive(self, module: LightningModule, user_step: Callable[[], Any], batch: Any) -> Any:
        """Answer a call of ``training_step``, while :attr:`answers` is True.

        Args:
            module: The module, which has the mixin.
            user_step: The user's own step, with its arguments.
            batch: The batch among these arguments.

        Returns:
            The return value of the call.
        """
        answer = self._answer
        assert answer is not None
        # A step may call `super().training_step`, and `probe_loss` calls `training_step`: these inner calls are plain calls.
        self._answer = None
        try:
            return answer(module, user_step, batch)
        finally:
            self._answer = answer


class DrivingCallback(Callback, ABC):
    """A callback whose driver answers the calls of the module's ``training_step``, and lets signals wait for a batch's end."""

    @abstractmethod  # so that command lines do not offer the class itself among the Trainer's callbacks
    def __init__(self) -> None:
        self.driver = Driver()
        self.signals = compat.SignalGate()


class Around(Protocol):
    """Base class of the hooks around the gradient of a batch.

    Attributes:
        seeds: The seeds of the run.
        snapshot: The snapshot that corrects the step; None if the step is plain.
    """

    seeds: Seeds
    snapshot: Snapshot | None

    def before_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Called before the forward pass of a batch, after the hooks of the batch have run."""

    def around_backward(self, trainer: Trainer) -> AbstractContextManager[None]:
        """The context of a batch's backward pass."""

    def after_gradient(
        self, trainer: Trainer, module: LightningModule, evaluated: Evaluated, *, first: bool, last: bool
    ) -> None:
        """Called when a batch's gradient is in ``.grad``: averaged over ranks if ``last``, scaled if a GradScaler is used."""


class ManualSteps:
    """Trains with the gradient of a method.

    Args:
        driver: Answers the calls of the module's ``training_step``.
        gradient: Where the gradient comes from.
        around: The hooks around the gradient of a batch.
        name: Name of the callback, for messages.
    """

    def __init__(self, driver: Driver, gradient: Gradient, around: Around, name: str) -> None:
        self._driver = driver
        self._gradient = gradient
        self._around = around
        self._name = name
        self._stepped = False
        self._default_dtype = torch.get_default_dtype()

    @contextmanager
    def one(self, trainer: Trainer, module: LightningModule, batch: Any) -> Iterator[None]:
        """Expect one call of ``training_step`` in the context, and train on its batch.

        Args:
            trainer: The trainer.
            module: Its module.
            batch: The batch.

        Yields:
            Nothing.

        Raises:
            UnsupportedError: If the driver sees no call, so that nothing would be trained.
        """
        self._around.before_step(trainer, module, batch)
        self._stepped = False
        # Read here, since the strategy calls the step inside the precision plugin's context, which may set another type.
        self._default_dtype = torch.get_default_dtype()
        with self._driver.answering(self._step):
            yield
        if not self._stepped:
            raise UnsupportedError(
                "`training_step` was replaced on the module or on its class after the VAMOMixin was added, so"
                f" {self._name} does not see its calls: define `training_step` in the class, or replace it before `with_vamo`."
            )

    def direct(self, trainer: Trainer, module: LightningModule, arguments: tuple[Any, ...]) -> dict[str, Any] | None:
        """Train on a batch without a call of the module's ``training_step``, where the driver would answer that call.

        Args:
            trainer: The trainer, of a single device.
            module: Its module.
            arguments: The arguments of ``training_step``, first the batch.

        Returns:
            The outputs of the step; None if the driver would not see the call, and then nothing has been done.
        """
        step = compat.own_step(module)
        if step is None:
            return None
        self._around.before_step(trainer, module, arguments[0])
        self._default_dtype = torch.get_default_dtype()
        return self._step(module, partial(step, module, *arguments), arguments[0])

    def _step(self, module: LightningModule, user_step: Callable[[], Any], batch: Any) -> dict[str, Any]:
        self._stepped = True
        trainer: Trainer = module.trainer
        accumulates = compat.accumulates(trainer)
        first = trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches == 0
        around = partial(self._around.around_backward, trainer)
        seeds, snapshot = self._around.seeds, self._around.snapshot
        shared = None if snapshot is None or self._gradient.uses_backward else snapshot.shared
        named = partial(compat.as_step, module, user_step)
        step = Step(trainer, module, named, batch, first, not accumulates, around, seeds, shared)
        after = partial(self._around.after_gradient, trainer, module, first=first, last=not accumulates)
        closure = Closure(step, self._gradient, after, self._name)
        # The user's code sees the flag as in plain training, and the precision plugin clips, and skips, as it does there.
        automatic = compat.manual(module, is_manual=False)
        with automatic, outside_precision_context(module.device, self._default_dtype):
            if accumulates:
                with compat.without_gradient_sync(trainer):
                    closure()
            else:
                compat.optimizer_step(trainer, module, trainer.fit_loop.batch_idx, closure)
        return closure.outputs
