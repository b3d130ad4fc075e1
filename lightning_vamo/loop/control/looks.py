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

CARRIED = 2
"""Epochs that have to follow a look at carried rows: one fills their table, and in the next one the rows are used."""

_TIMED = 24
"""Plain steps before the first look, for the clock."""

RARE = 16
"""Where an epoch has no end: a look takes one of so many steps."""


def begin_look(here: Here, every: float | None, after: int, *, pause: bool = False) -> bool:
    """Begin a look: the last steps of the epoch, or where snapshots are timed by steps, the next ones.

    Args:
        here: The present state of the run.
        every: Steps from one snapshot to the next, infinitely many where the epoch has no end; None where epochs tell.
        after: Epochs that have to follow, or the look would lead to nothing and is left out.
        pause: Whether there was a look just before, which has told the directions.

    Returns:
        Whether it has begun.
    """
    assert here.choice is not None
    step = here.trainer.global_step
    if every is not None:
        burst = _burst(here)
        burst = max(_fewest(here), min(burst, int(every))) if math.isfinite(every) else burst
        since = step + ((RARE - 1) * burst if pause and math.isinf(every) else 0)
    else:
        left = _steps_left(here.trainer)
        since, burst = _place(here, left)
        if epochs_left(here) < _further(here, since + burst - left) + after:
            return False
        since += step
    here.choice.look = Look(since, since + burst)
    here.choice.stage = "look"
    # What is known of directions is of little use at first, and long after the last look.
    here.learning.turn_at = None if pause else since + burst // 2
    here.learning.learned_at = None if every is None else since + burst
    return True


def length(here: Here) -> tuple[int, bool]:
    """How long a look takes that begins with an epoch, where epochs have an end.

    Args:
        here: The present state of the run.

    Returns:
        The number of epochs, and whether the look ends after the second epoch, or with it.
    """
    steps = _steps(here)
    since, burst = _place(here, steps)
    return 1 + _further(here, since + burst - steps), since + burst >= 2 * steps


def looks_within(here: Here) -> float | None:
    """Within how many epochs another look at carried rows may begin.

    Args:
        here: The present state of the run.

    Returns:
        The number: below 1 if the present look was the last one, infinite if the training has no known end. None if there are
        no looks, since directions are not learned.
    """
    if not here.settings.directions.learns:
        return None
    left = epochs_left(here)
    return left - (length(here)[0] - 1) - CARRIED if math.isfinite(left) else left


def _place(here: Here, left: int) -> tuple[int, int]:
    """After how many steps a look begins, and its number of steps; so many steps are left of the epoch."""
    burst, fewest = _burst(here), _fewest(here)
    since = max(min(_TIMED, left // 4), left - burst)
    # The look ends with an epoch, and goes on in the next epochs only if it has too few steps.
    ends = range(left - since, burst + 1, _steps(here))
    return since, next((each for each in reversed(ends) if each >= fewest), burst)


def _further(here: Here, steps: int) -> int:
    """How many epochs begin in so many steps after the end of an epoch."""
    return max(0, math.ceil(steps / _steps(here)))


def _steps(here: Here) -> int:
    """Optimizer steps of an epoch, which has an end: the last one may have fewer batches."""
    return max(1, math.ceil(here.steps_per_epoch))


def _burst(here: Here) -> int:
    """Steps of a look, if it need not end with an epoch."""
    asked = here.settings.directions.warmup_batches
    return max(_fewest(here), BURST if asked in ("auto", 0) else int(asked))


def epochs_left(here: Here) -> float:
    """The number of epochs after the present epoch; infinite if it is not known."""
    trainer, most, steps = here.trainer, here.trainer.max_epochs, here.steps_per_epoch
    if not math.isfinite(steps):
        return math.inf
    by_epochs = math.inf if most is None or most < 0 else most - trainer.current_epoch - 1
    begun = trainer.global_step - max(0, trainer.fit_loop.batch_idx) // trainer.accumulate_grad_batches
    by_steps = math.inf if trainer.max_steps < 0 else (trainer.max_steps - begun) / steps - 1
    return min(by_epochs, by_steps)


def _fewest(here: Here) -> int:
    """The fewest steps of a look: each of its two passes needs one gradient more than directions are followed."""
    assert here.choice is not None
    oversampling = getattr(here.settings.directions, "oversampling", 0)
    return 2 * (oversampled(here.choice.schedule.maximum, oversampling, math.inf) + 1)


def _steps_left(trainer: Trainer) -> int:
    """Optimizer steps until the end of the epoch, which has one."""
    return -(-int(trainer.num_training_batches - trainer.fit_loop.batch_idx) // trainer.accumulate_grad_batches)
