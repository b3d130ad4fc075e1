"""Attach recorders to training loaders, and remove them."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from lightning_vamo.loop.compat.attributes import replaced
from lightning_vamo.loop.plan.loadable import INSTEAD, can_record, check_loader
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler


def record(loader: object, instead: str = INSTEAD) -> RecordingBatchSampler:
    """Make a training loader record the batches that it draws.

    Args:
        loader: The loader, after Lightning has prepared it.
        instead: See :func:`check_loader`.

    Returns:
        The recorder, now the loader's batch sampler; assign its ``wrapped`` back to undo.

    Raises:
        UnsupportedError: If there is no plan to record: see :func:`check_loader`.
    """
    loader = check_loader(loader, instead)
    iterator = loader._iterator
    if iterator is not None:
        # Persistent workers of an earlier use, which would go on reading the sampler that they began with.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        loader._iterator = None
    # A loader that the Trainer sets up again starts afresh.
    sampler = loader.batch_sampler
    recorder = RecordingBatchSampler(sampler.wrapped if isinstance(sampler, RecordingBatchSampler) else sampler)
    # DataLoader forbids assigning its batch sampler after construction; its iterators read it anew each time.
    object.__setattr__(loader, "batch_sampler", recorder)
    return recorder


@contextmanager
def recording(
    trainer: Trainer,
    prepare: Callable[[RecordingBatchSampler, int], None],
    *,
    required: bool = True,
    instead: str = INSTEAD,
) -> Iterator[None]:
    """Let every training loader that the Trainer sets up in the context record its plan; at the end, remove the recorders.

    ``Strategy.process_dataloader`` runs after Lightning has injected its samplers and before the loader is iterated, also
    when loaders are reloaded.

    Args:
        trainer: The trainer.
        prepare: Called with each recorder, and how many there were before it, before anything is drawn from it.
        required: Whether a loader that cannot be recorded is refused; else it is left alone.
        instead: What else to do where it is refused.
    """
    process = trainer.strategy.process_dataloader
    # Weakly, so that loaders which are reloaded do not pile up, with their datasets and workers.
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
