"""The base class of gradients: how the gradient of a training step is computed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch import LightningModule, Trainer

from lightning_vamo.core.control.mixing import Alpha
from lightning_vamo.core.probes.along import Along
from lightning_vamo.loop.ledger.seeds import Seeds


class Step(NamedTuple):
    """A batch that is trained on.

    Attributes:
        trainer: The trainer.
        module: Its module.
        user_step: Calls the user's ``training_step`` with its arguments, and returns its return value.
        batch: The batch among the arguments.
        first: Whether the batch is the first batch that the optimizer step accumulates.
        last: Whether the batch is the last, so that the optimizer steps next.
        around_backward: Makes the context of a backward pass.
        seeds: The seeds of the run.
        shared: Directions of the control variate, for a gradient without a backward pass to use too; None if there are none.
    """

    trainer: Trainer
    module: LightningModule
    user_step: Callable[[], Any]
    batch: Any
    first: bool
    last: bool
    around_backward: Callable[[], AbstractContextManager[None]]
    seeds: Seeds
    shared: Along | None = None


class Evaluated(NamedTuple):
    """The result of a batch: its outputs and its evaluations.

    Attributes:
        outputs: The outputs of the step, for callbacks.
        forwards: Number of forward passes of the batch.
        backwards: Number of backward passes of the batch.
        skipped: Whether the batch added nothing, since ``training_step`` returned None.
    """

    outputs: dict[str, Any]
    forwards: int
    backwards: int
    skipped: bool


class Gradient(ABC):
    """Base class of gradients: computes the gradient of a training step."""

    uses_backward: ClassVar[bool] = True
    """Whether losses are differentiated, so that a loss has to depend on a parameter."""

    keeps_place: ClassVar[bool] = False
    """Whether a checkpoint holds the run's position in its epoch even without a control variate."""

    @property
    def lost(self) -> int:
        """Number of the run's steps that left out a loss that was not finite, and so moved the weights less or not at all."""
        return 0

    @property
    def forwards(self) -> int | None:
        """Number of forward passes of a batch in a step without a backward pass; None if a step makes one of each."""
        return None

    def begin(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        """Begin a fit: forget the last fit, and refuse a module or optimizer that cannot be trained.

        Args:
            trainer: The trainer, whose optimizers are set up.
            module: Its module.
            name: Name of the callback, for messages.
        """
        return

    @abstractmethod
    def accumulate(self, step: Step) -> Evaluated:
        """Evaluate a batch, and add its share of the gradient to ``.grad``.

        Args:
            step: The batch. If several are accumulated, the first batch zeroes ``.grad``, and each batch adds its share.

        Returns:
            The outputs and the evaluations of the batch.
        """

    def release(self) -> None:
        """Release the objects of a fit that has ended."""
        return

    def bounded(self, alpha: Alpha) -> Alpha:
        """The mixing coefficient to check against bounds; ``"theory"`` if the bounds do not hold for this gradient."""
        return alpha if self.uses_backward else "theory"

    def end_epoch(self) -> dict[str, float]:
        """Close an epoch.

        Returns:
            The epoch's figures, to log.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state that the next step needs, as plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        return
