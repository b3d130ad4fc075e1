"""Looks: when a measured choice learns directions from plain steps."""

import math

from lightning.pytorch import Trainer

from lightning_vamo.core.directions.learned.passes import oversampled
from lightning_vamo.loop.control.choice import Look
from lightning_vamo.loop.control.here import Here

BURST = 64
"""Steps of a look, at least: two passes of power iteration over 32 gradients each."""

JUDGED = 64
"""Steps with carried rows after which the rows are judged."""

_TIMED = 24
"""Plain steps before the first look, for the clock."""

RARE = 16
"""Where an epoch has no end: a look takes one of so many steps."""


def begin_look(here: Here, every: float | None, after: int, *, pause: bool = False) -> None:
    """Begin a look: the last steps of the epoch, or where snapshots are timed by steps, the next ones.

    Args:
        here: The present state of the run.
        every: Steps from one snapshot to the next, infinitely many where the epoch has no end; None where epochs tell.
        after: Epochs that have to follow, or the look would lead to nothing and is left out.
        pause: Whether there was a look just before, which has told the directions.
    """
    assert here.choice is not None
    step, fewest = here.trainer.global_step, _fewest(here)
    asked = here.settings.directions.warmup_batches
    burst = max(fewest, BURST if asked in ("auto", 0) else int(asked))
    if every is not None:
        burst = max(fewest, min(burst, int(every))) if math.isfinite(every) else burst
        since = step + ((RARE - 1) * burst if pause and math.isinf(every) else 0)
    else:
        left = _steps_left(here.trainer)
        since = step + max(min(_TIMED, left // 4), left - burst)
        # The look ends with an epoch, and goes on in the next epochs only if it has too few steps.
        ends = range(step + left - since, burst + 1, max(1, int(here.steps_per_epoch)))
        burst = next((each for each in reversed(ends) if each >= fewest), burst)
        further = max(0, math.ceil((since + burst - step - left) / here.steps_per_epoch))
        if epochs_left(here) < further + after:
            return
    here.choice.look = Look(since, since + burst)
    here.choice.stage = "look"
    # What is known of directions is of little use at first, and long after the last look.
    here.learning.turn_at = None if pause else since + burst // 2
    here.learning.learned_at = None if every is None else since + burst


def epochs_left(here: Here) -> float:
    """The number of epochs after the present epoch; infinite if it is not known."""
    trainer, most, steps = here.trainer, here.trainer.max_epochs, here.steps_per_epoch
    if not math.isfinite(steps):
        return math.inf
    by_epochs = math.inf if most is None or most < 0 else most - trainer.current_epoch - 1
    by_steps = math.inf if trainer.max_steps < 0 else (trainer.max_steps - trainer.global_step) / steps - 1
    return min(by_epochs, by_steps)


def _fewest(here: Here) -> int:
    """The fewest steps of a look: each of its two passes needs one gradient more than directions are followed."""
    assert here.choice is not None
    oversampling = getattr(here.settings.directions, "oversampling", 0)
    return 2 * (oversampled(here.choice.schedule.maximum, oversampling, math.inf) + 1)


def _steps_left(trainer: Trainer) -> int:
    """Optimizer steps until the end of the epoch, which has one."""
    return -(-int(trainer.num_training_batches - trainer.fit_loop.batch_idx) // trainer.accumulate_grad_batches)
