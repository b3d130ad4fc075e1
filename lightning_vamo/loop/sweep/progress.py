"""Progress bars for sweeps and warm-ups, in the style of the Trainer's bar, and for the finder."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


@contextmanager
def progress_bar(trainer: Trainer, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar below the training bar for the length of the context.

    Args:
        trainer: The trainer. If the trainer shows no bar, or a bar of another kind, no bar is shown here.
        description: Name of the bar.
        total: Number of batches.

    Yields:
        A function to call with the number of batches done.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and not bar.is_disabled:
        yield from _tqdm(bar, description, total)
    elif isinstance(bar, RichProgressBar) and not bar.is_disabled and bar.progress is not None:
        yield from _rich(bar, description, total)
    else:
        yield nothing


def nothing(done: int = 0) -> None:
    """Show nothing: what counts evaluations knows this function, and is spared the call.

    Args:
        done: Number of batches done.
    """


def _tqdm(bar: TQDMProgressBar, description: str, total: int) -> Iterator[Callable[[int], None]]:
    with Tqdm(
        desc=description,
        total=total,
        position=2 * bar.process_position + 1,
        leave=False,
        dynamic_ncols=True,
        file=sys.stdout,
        bar_format=bar.BAR_FORMAT,
    ) as tqdm:

        def show(done: int) -> None:
            if done % bar.refresh_rate == 0 or done == total:
                tqdm.update(done - tqdm.n)

        yield show


def _rich(bar: RichProgressBar, description: str, total: int) -> Iterator[Callable[[int], None]]:
    progress = bar.progress
    assert progress is not None
    style = bar.theme.description
    task = progress.add_task(f"[{style}]{description}" if style else description, total=total)

    def show(done: int) -> None:
        if done % bar.refresh_rate == 0 or done == total:
            progress.update(task, completed=done)
            bar.refresh()

    try:
        yield show
    finally:
        # Hidden, not removed: Lightning 2.6.0 finds its own tasks by their place among all tasks.
        progress.update(task, visible=False)


@contextmanager
def finder_bar(bar: ProgressBar | None) -> Iterator[Tqdm | None]:
    """Show a bar of evaluations for the length of the context, in the place of the training bar.

    Args:
        bar: The Trainer's bar. If the Trainer shows no bar, no bar is shown here.

    Yields:
        The bar, whose total is not known yet; None if no bar is shown.
    """
    if not getattr(bar, "is_enabled", False):
        yield None
        return
    with Tqdm(desc="Finding probes", unit=" evaluations", leave=False, dynamic_ncols=True, file=sys.stdout) as tqdm:
        yield tqdm
