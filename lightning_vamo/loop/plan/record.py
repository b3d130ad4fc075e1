"""Attach recorders to training loaders, and remove them."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from lightning_vamo.loop import compat
from lightning_vamo.loop.compat.attributes import replaced
from lightning_vamo.loop.plan.loadable import INSTEAD, can_record, check_loader
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler


def record(loader: object, instead: str = INSTEAD) -> RecordingBatchSampler:
    """Make a training loader record the batches that it draws.

    Args:
        loader: The loader, after Lightning has prepared it.
        instead: See :func:`check_loader`.

    Returns:
        The recorder, which is now the loader's batch sampler; its attribute ``wrapped`` is the former batch sampler.

    Raises:
        UnsupportedError: If the loader cannot be recorded: see :func:`check_loader`.
    """
    loader = check_loader(loader, instead)
    iterator = loader._iterator
    if iterator is not None:
        # Persistent workers of an earlier use would go on reading the former batch sampler.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        loader._iterator = None
    # A loader that the Trainer sets up again gets a new recorder.
    sampler = loader.batch_sampler
    recorder = RecordingBatchSampler(sampler.wrapped if isinstance(sampler, RecordingBatchSampler) else sampler)
    # DataLoader forbids a plain assignment of its batch sampler after construction; each new iterator reads the attribute.
    object.__setattr__(loader, "batch_sampler", recorder)
    return recorder


def record_again(trainer: Trainer, *, required: bool) -> None:
    """Set up the training loaders again, if a hook had them set up before they could be recorded.

    Hooks of callbacks, of a data module and of the module may ask for the number of steps before the callback's ``setup``.

    Args:
        trainer: The trainer, within the context of :func:`recording`.
        required: See :func:`recording`.
    """
    loaders = compat.train_loaders(trainer)
    recorded = [isinstance(getattr(loader, "batch_sampler", None), RecordingBatchSampler) for loader in loaders]
    if any(not one and (required or can_record(loader)) for one, loader in zip(recorded, loaders, strict=True)):
        compat.set_up_loaders_again(trainer)


@contextmanager
def recording(
    trainer: Trainer,
    prepare: Callable[[RecordingBatchSampler, int], None],
    *,
    required: bool = True,
    instead: str = INSTEAD,
) -> Iterator[None]:
    """Make a context in which every training loader that the Trainer sets up records its batches; at its end, stop recording.

    ``Strategy.process_dataloader`` runs after Lightning has injected its samplers and before the loader is iterated, even if
    loaders are reloaded.

    Args:
        trainer: The trainer.
        prepare: Called with each recorder and the number of recorders before it, before anything is drawn from the recorder.
        required: Whether a loader that cannot be recorded is refused; otherwise the loader is left alone.
        instead: Another remedy, for the message of a refusal.
    """
    process = trainer.strategy.process_dataloader
    # Weak references, so that the memory of reloaded loaders, their datasets and workers is freed.
    recorded: list[weakref.ref[Any]] = []

    def process_dataloader(loader: object) -> object:
        loader = process(loader)
        if trainer.training and (required or can_record(loader)):
            prepare(record(loader, instead), len(recorded))
            recorded.append(weakref.ref(loader))
        return loader

    try:
        with replaced(trainer.strategy, "process_dataloader", process_dataloader):
            yield
    finally:
        for loader in (reference() for reference in recorded):
            if loader is not None and isinstance(loader.batch_sampler, RecordingBatchSampler):
                object.__setattr__(loader, "batch_sampler", loader.batch_sampler.wrapped)
