"""Where the gradient of a training step comes from."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from lightning_vamo.core.control.mixing import Alpha
from lightning_vamo.core.probes.along import Along
from lightning_vamo.loop.ledger.seeds import Seeds


@dataclass(frozen=True)
class Step:
    """A batch that is trained on.

    Attributes:
        trainer: The trainer.
        module: Its module.
        user_step: Calls the user's ``training_step`` with its arguments, and returns what it returns.
        batch: The batch among these.
        first: Whether the batch is the first of those that the optimizer step accumulates.
        last: Whether the optimizer steps next.
        around_backward: What a backward pass is to run in.
        seeds: The seeds of the run.
        shared: Directions of the control variate; None if there are none.
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


@dataclass(frozen=True)
class Evaluated:
    """What came of a batch.

    Attributes:
        outputs: What callbacks get as the outputs of the step.
        forwards: How many forward passes of the batch there were.
        backwards: How many backward passes.
        skipped: Whether the batch added nothing, since ``training_step`` returned None.
    """

    outputs: dict[str, Any]
    forwards: int
    backwards: int
    skipped: bool


class Gradient(ABC):
    """Where the gradient of a training step comes from."""

    uses_backward: ClassVar[bool] = True
    """Whether losses are differentiated, so that they have to depend on a parameter."""

    keeps_place: ClassVar[bool] = False
    """Whether a checkpoint holds where the run stands in its epoch, also where nothing is taken out of the gradient."""

    def begin(self, trainer: Trainer, module: LightningModule, name: str) -> None:
        """Begin a fit: forget the last one, and refuse what cannot be trained.

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
            step: The batch. Where several are accumulated, each adds its share, and the first zeroes what was there.

        Returns:
            What came of the batch.
        """

    def release(self) -> None:
        """Let go of what belongs to the module of a fit that has ended."""
        return

    def bounded(self, alpha: Alpha) -> Alpha:
        """The mixing coefficient to warn of: the theory's where the gradient's own noise is as large as what is taken out."""
        return alpha if self.uses_backward else "theory"

    def end_epoch(self) -> dict[str, float]:
        """Close an epoch.

        Returns:
            The epoch's figures, to log.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the next step needs of the steps before, as plain types and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        return
