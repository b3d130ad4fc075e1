"""Waiting before a look: for the loss to fall slowly, or for the end of the pause after a look in vain."""

import math

from lightning.pytorch import Trainer

from lightning_vamo.core.schedules.decision import FEWEST, not_yet
from lightning_vamo.core.schedules.falling import noise_limits
from lightning_vamo.loop.control.choice import Choice
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.looks import epochs_left, length, looks_within


def waits(here: Here, choice: Choice, *, others: bool) -> bool:
    """Whether there is to be no look at carried rows in the present epoch; the same on all ranks.

    A look, the burst of steps from which directions are learned, takes time, and rows that take time are not chosen while the
    loss falls fast. So where time may count, the first look waits for two whole epochs, which tell how fast the loss falls,
    unless it takes longer than that.

    Args:
        here: The present state of the run, at an epoch's start.
        choice: The choice, of which nothing corrects the steps at present.
        others: Whether the directions that are known, if there are any, belong to other parameters than those that train.

    Returns:
        Whether the first look waits, or the pause after another one goes on: see :meth:`EfficientProbes.rests`.
    """
    fall = here.trainer.strategy.broadcast(choice.fall())
    if choice.schedule.chosen is None:
        _first(here, choice, fall)
    return choice.schedule.rests(fall, others=others)


def _first(here: Here, choice: Choice, fall: float | None) -> None:
    """Begin or end to wait for the first look, and say why, as far as that is new."""
    schedule, trainer, left = choice.schedule, here.trainer, 1 + epochs_left(here)
    epochs, lasts = length(here)
    needed = FEWEST - 1 + epochs
    if not choice.may_take_time():
        schedule.waits = False
    elif fall == math.inf and not (schedule.waits or lasts):
        schedule.waits = True
        few = f"{left:.3g} epochs are too few for corrections that take time, which need {needed}"
        choice.stay_plain(trainer, few if left < needed else not_yet(fall), pauses=math.inf if left >= needed else None)
        choice.ends = left < needed
    elif schedule.waits and fall is not None and math.isfinite(fall) and not noise_limits(fall):
        told = len(choice.decisions) > 1
        if told or left >= needed - 2:
            choice.stay_plain(trainer, not_yet(fall), pauses=looks_within(here), told=told)


def leave_out(trainer: Trainer, choice: Choice) -> None:
    """Say that no look at carried rows is of use any more, where another one was promised.

    Args:
        trainer: The trainer.
        choice: The choice.
    """
    if not choice.ends and choice.decisions and choice.decisions[-1].kind == "nothing":
        choice.stay_plain(trainer, "too few epochs are left to learn directions, fill a table of rows and use it", pauses=None)
        choice.ends = True
