"""Looks: when a measured choice learns directions from plain steps."""

import math

from lightning.pytorch import Trainer

from lightning_vamo.core.directions.learned.passes import oversampled
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.choice import Look
from lightning_vamo.loop.control.here import Here

BURST = 64
"""Steps of a look in an epoch that has as many: two passes of power iteration over 32 gradients each."""

JUDGED = 64
"""Steps with carried rows after which the rows are judged."""

CARRIED = 2
"""Epochs that have to follow a look at carried rows: one fills their table, if the look has not, and others use the rows."""

_SHORT = 32
"""Steps of a look, at least, unless the user asks for fewer: less tells too little of the gradient noise."""

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
    here.learning.turn_at = None if pause else since + (burst // 2 if every is not None else _first_pass(here, burst))
    here.learning.learned_at = None if every is None else since + burst
    return True


def fills(here: Here) -> bool:
    """Whether the present epoch, at its start, ends a look, of which a pass has told something of the directions.

    Args:
        here: The present state of the run.

    Returns:
        Whether its steps may fill a table of rows along these directions, so that the look needs no further epoch for that.
    """
    assert here.choice is not None
    look, learning = here.choice.look, here.learning
    if here.choice.stage != "look" or look is None or learning.learner is None or learning.turn_at is not None:
        return False
    return learning.learner.ready and look.until - here.trainer.global_step == _steps(here)


def trial(here: Here) -> float:
    """The share of the steps to come, the present epoch's among them, in which rows are judged; 0 if there is no end.

    Args:
        here: The present state of the run, at an epoch's start.

    Returns:
        The share, at most 1.
    """
    return min(1.0, JUDGED / (_steps(here) * (1 + max(0.0, epochs_left(here)))))


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
    burst, steps, asked = _burst(here), _steps(here), _asked(here)
    fewest = _fewest(here) if asked else max(_fewest(here), _SHORT)
    timed = min(_TIMED, left // 4)
    since = max(left - burst, min(timed, left - fewest) if left >= fewest else timed)
    first = left - since
    # The look ends with an epoch, and goes on in the next epochs only if it has too few steps.
    if asked:
        ends = [each for each in range(first, burst + 1, steps) if each >= fewest]
        return since, ends[-1] if ends else burst
    if first >= fewest:
        return since, first
    # Then the last epoch, before which a pass is over, fills a table of rows too.
    return since, first + steps * math.ceil((max(fewest, steps + fewest // 2) - first) / steps)


def _first_pass(here: Here, burst: int) -> int:
    """After how many steps of a look its second pass begins: half, or by the start of its last epoch, which then fills rows."""
    before, half = burst - _steps(here), _fewest(here) // 2
    return min(burst // 2, before) if before >= half else burst // 2


def _further(here: Here, steps: int) -> int:
    """How many epochs begin in so many steps after the end of an epoch."""
    return max(0, math.ceil(steps / _steps(here)))


def _steps(here: Here) -> int:
    """Optimizer steps of an epoch, which has an end: the last one may have fewer batches."""
    return max(1, math.ceil(here.steps_per_epoch))


def _burst(here: Here) -> int:
    """Steps of a look, if it need not end with an epoch."""
    return max(_fewest(here), _asked(here) or BURST)


def _asked(here: Here) -> int:
    """How many batches the user has asked to learn from; 0 if the user leaves that open."""
    asked = here.settings.directions.warmup_batches
    return 0 if asked == "auto" else int(asked)


def epochs_left(here: Here) -> float:
    """The number of epochs after the present epoch; infinite if it is not known."""
    trainer, most, steps = here.trainer, here.trainer.max_epochs, here.steps_per_epoch
    if not math.isfinite(steps):
        return math.inf
    by_epochs = math.inf if most is None or most < 0 else most - trainer.current_epoch - 1
    begun = trainer.global_step - compat.batch_idx(trainer) // trainer.accumulate_grad_batches
    by_steps = math.inf if trainer.max_steps < 0 else (trainer.max_steps - begun) / steps - 1
    return min(by_epochs, by_steps)


def _fewest(here: Here) -> int:
    """The fewest steps of a look: each of its two passes needs one gradient more than directions are followed."""
    assert here.choice is not None
    oversampling = getattr(here.settings.directions, "oversampling", 0)
    return 2 * (oversampled(here.choice.schedule.maximum, oversampling, math.inf) + 1)


def _steps_left(trainer: Trainer) -> int:
    """Optimizer steps until the end of the epoch, which has one."""
    return -(-int(trainer.num_training_batches - compat.batch_idx(trainer)) // trainer.accumulate_grad_batches)
