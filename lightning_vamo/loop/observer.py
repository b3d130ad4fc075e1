"""Watch a run: hooks that are called when a method probes, takes a snapshot, or corrects a gradient."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

Purpose = Literal["warm-up", "sweep", "row"]


class RunObserver(Callback):
    """Base class of observers: add a subclass to the Trainer's callbacks to watch a method of this package in training.

    Override the hooks that you need. The hooks get the run's own objects: read them, keep copies, and change nothing.

    Example:
        >>> class Losses(RunObserver):
        ...     def on_sweep(self, trainer, module, sweep):
        ...         print(trainer.current_epoch, sweep.snapshot_loss)
    """

    def on_probing_start(self, trainer: Trainer, module: LightningModule, purpose: Purpose) -> None:
        """Called before batches are evaluated outside a training step.

        Args:
            trainer: The trainer.
            module: Its module.
            purpose: ``"warm-up"``: gradients to learn directions from. ``"sweep"``: the losses of an epoch's batches.
                ``"row"``: the losses of the step's own batch at the snapshot.
        """

    def on_probing_end(self, trainer: Trainer, module: LightningModule, purpose: Purpose) -> None:
        """Called after batches were evaluated outside a training step, even if an evaluation raised an error.

        Args:
            trainer: The trainer.
            module: Its module.
            purpose: As for :meth:`on_probing_start`.
        """

    def on_sweep(self, trainer: Trainer, module: LightningModule, sweep: Any) -> None:
        """Called when a sweep is done.

        Args:
            trainer: The trainer.
            module: Its module.
            sweep: The result: ``deltas``, ``weights``, ``snapshot_loss``, ``snr``, ``evaluations``, ``seconds`` and more.
        """

    def on_snapshot(self, trainer: Trainer, module: LightningModule, snapshot: Any) -> None:
        """Called when a snapshot was due, and has been taken if possible.

        Args:
            trainer: The trainer.
            module: Its module.
            snapshot: The snapshot, with its ``kind``, ``directions``, ``parameters`` and ``sweep``. None if the coming steps
                are plain, because the number of probes is 0 or no directions have been learned yet.
        """

    def on_gradient(self, trainer: Trainer, module: LightningModule, snapshot: Any, row: Any) -> None:
        """Called when the gradient of a batch is in ``.grad``, before the correction.

        Args:
            trainer: The trainer.
            module: Its module.
            snapshot: The snapshot that corrects the step; None if the step is plain.
            row: The batch's row: its position in the plan of the snapshot, or the probe differences themselves if rows are
                recomputed. None if the step is plain.
        """

    def on_correction(self, trainer: Trainer, module: LightningModule, snapshot: Any, moments: Tensor | None) -> None:
        """Called when the gradient of an optimizer step has been corrected, before the optimizer steps.

        Args:
            trainer: The trainer.
            module: Its module.
            snapshot: The snapshot; None if the step is plain.
            moments: The squared norm of the gradient and how much of it was removed, shape ``(2,)``; None if the gradient was
                not changed.
        """


def observers(trainer: Trainer) -> list[RunObserver]:
    """The observers among the Trainer's callbacks."""
    return [callback for callback in trainer.callbacks if isinstance(callback, RunObserver)]  # type: ignore[attr-defined]


def probing(trainer: Trainer, module: LightningModule, purpose: Purpose) -> AbstractContextManager[None]:
    """Make a context that calls the observers' probing hooks at its beginning and at its end.

    Args:
        trainer: The trainer.
        module: Its module.
        purpose: The purpose of the evaluations.

    Returns:
        The context.
    """
    watching = observers(trainer)
    return _telling(watching, trainer, module, purpose) if watching else nullcontext()


@contextmanager
def _telling(watching: Sequence[RunObserver], trainer: Trainer, module: LightningModule, purpose: Purpose) -> Iterator[None]:
    for observer in watching:
        observer.on_probing_start(trainer, module, purpose)
    try:
        yield
    finally:
        for observer in watching:
            observer.on_probing_end(trainer, module, purpose)
