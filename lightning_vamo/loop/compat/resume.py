"""Lightning's private parts around a resume within an epoch."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from lightning_vamo.loop.compat.attributes import replaced


@contextmanager
def continued(
    trainer: Trainer, restore: Callable[[], None], *, within: bool, end_batch: bool, resumable: bool = True
) -> Iterator[None]:
    """Make a context in which the resumed epoch loop continues exactly where the interrupted run stopped.

    Lightning makes the loader's iterator before the first epoch of a run, even after a resume. If a checkpoint was saved at the
    end of a batch, Lightning assumes that validation and plateau schedulers after the batch are done. No hook comes in between.

    Args:
        trainer: The trainer, which has read the checkpoint and not yet begun to train.
        restore: Called once. Within an epoch, when the loaders' iterators have been made and nothing has been drawn from them;
            otherwise before the next epoch, which may reload the loaders, and makes their iterators at the usual point of the
            random stream.
        within: Whether the run goes on within an epoch.
        end_batch: Whether the work after a batch is still to be done: validation, if due, and the schedulers that wait for it.
        resumable: Whether the loaders go on with the remaining batches, so that Lightning need not warn.
    """
    fit_loop, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    on_advance_start, on_run_start, advance = fit_loop.on_advance_start, loop.on_run_start, loop.advance
    original_reset = loop.reset
    waiting = {"epoch": not within, "start": True, "end_batch": end_batch}
    stepped = loop._batches_that_stepped

    def begin() -> None:
        if waiting["epoch"]:
            waiting["epoch"] = False
            restore()
        on_advance_start()

    def start(fetcher: Any) -> None:
        first, waiting["start"] = waiting["start"], False
        if first and not within:
            iter(fetcher)
        on_run_start(fetcher)
        if first and within:
            if not loop.restarted_on_last or loop.batch_progress.current.ready == 0:
                # Saved within or before a batch: Lightning would count the batch's step twice, and validate before the batch.
                loop.restarting, loop._batches_that_stepped, loop.batch_progress.is_last_batch = False, stepped, False
            restore()

    def step(fetcher: Any) -> None:
        if waiting["end_batch"]:
            waiting["end_batch"] = False
            loop.val_loop.restarting = False
            return
        advance(fetcher)

    def reset() -> None:
        with warnings.catch_warnings():
            if resumable:
                warnings.filterwarnings("ignore", ".*your dataloader is not resumable")
            original_reset()

    with (
        replaced(fit_loop, "on_advance_start", begin),
        replaced(loop, "reset", reset),
        replaced(loop, "on_run_start", start),
        replaced(loop, "advance", step),
    ):
        yield


def position(trainer: Trainer) -> int | None:
    """The number of batches that the epoch has trained on, by the checkpoint's counters; None between two epochs."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return int(batch.processed) if epoch.started > epoch.processed else None


def batch_idx(trainer: Trainer) -> int:
    """Lightning's index of the present batch; 0 at an epoch's start, where Lightning still has that of the epoch before."""
    return 0 if position(trainer) is None else max(0, trainer.fit_loop.batch_idx)


def end_batch_on_resume(checkpoint: dict[str, Any]) -> bool:
    """Mark the last batch as complete in a checkpoint that was saved at the batch's end, so that Lightning skips nothing.

    Args:
        checkpoint: The checkpoint, before the loops read it; this function changes it.

    Returns:
        Whether the checkpoint was saved at a batch's end, so that the work after the batch is still to be done: see
        :func:`continued`.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    current = progress["current"]
    if current["ready"] != current["processed"]:
        return False
    ends_batch: bool = current["completed"] < current["processed"]
    # Both counts: batches that an epoch skipped, for None or for -1 from `on_train_batch_start`, are missing in both.
    for counts in (current, progress["total"]):
        counts["started"] = counts["processed"] = counts["completed"] = counts["ready"]
    return ends_batch


def in_validation(trainer: Trainer) -> bool:
    """Whether a validation has begun but not ended."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    ended = progress.is_last_batch and progress.current.completed == progress.current.ready
    return trainer.validating and not ended


def last_reload(trainer: Trainer) -> float:
    """The epoch in which the training loaders were last made; Lightning's checkpoints do not hold this number."""
    return float(trainer.fit_loop._last_train_dl_reload_epoch)


def set_last_reload(trainer: Trainer, epoch: float) -> None:
    """Set the epoch in which the training loaders were last made, from which Lightning counts to the next reload."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def resume_schedulers(trainer: Trainer) -> None:
    """Make plateau schedulers step at the end of a resumed epoch: Lightning skips them, since it has lost their metrics."""
    trainer.fit_loop._restarting = False


def ended_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint was saved at an epoch's end, before the schedulers that wait for the epoch's metrics stepped."""
    total = checkpoint["loops"]["fit_loop"]["epoch_progress"]["total"]
    return bool(total["ready"] == total["processed"] == total["completed"] + 1)


def leave_ended_epoch(trainer: Trainer) -> None:
    """Begin with the next epoch after a checkpoint of an epoch's end.

    Where ``max_steps`` ends the training, Lightning restarts the epoch that has ended, and trains on a batch too many in it.

    Args:
        trainer: The trainer, which has read the checkpoint and not yet begun to train.
    """
    fit_loop = trainer.fit_loop
    if fit_loop.restarted_on_epoch_end:
        fit_loop.epoch_progress.increment_completed()
        # Not by the property of the fit loop, which sets True where `max_steps` ends the training, whatever it is given.
        fit_loop._restarting = fit_loop.epoch_loop.restarting = False
        for loop in (fit_loop, fit_loop.epoch_loop):
            loop.reset_restart_stage()


def step_plateau_schedulers(trainer: Trainer) -> None:
    """Step the plateau schedulers of the last epoch, which had not stepped when the checkpoint was saved."""
    progress = trainer.fit_loop.epoch_progress.current
    progress.completed -= 1  # their frequency is counted in epochs
    try:
        trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
    finally:
        progress.completed += 1
