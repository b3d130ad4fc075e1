"""Choose a snapshot's directions and their number: drawn at random, or learned from the gradients of training."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_vamo.core.control.mixing import coefficient_of, effective_coefficient
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.choice import Choice
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.looks import BURST, epochs_left
from lightning_vamo.loop.control.warmup import warm_up
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import probing
from lightning_vamo.loop.parameters import same_tensors
from lightning_vamo.loop.plan.plan import has_plan
from lightning_vamo.loop.plan.reread import Swept


@dataclass(frozen=True)
class Drawn:
    """Probe directions, with the state to draw the same directions after a resume.

    Attributes:
        directions: The directions.
        family: Name of the family of directions.
        seed: The seed of random directions.
        parameters: The parameters that the directions belong to.
        beta: The effective coefficient of the rows along the directions.
        kept: The state that the family keeps of its point, as plain types and tensors.
    """

    directions: ProbeDirections
    family: str
    seed: int
    parameters: Sequence[Tensor]
    beta: float
    kept: Any = None

    @classmethod
    def of(cls, here: Here, directions: ProbeDirections, seed: int, kept: Any = None) -> "Drawn":
        """Draw directions for the parameters of a run."""
        beta = effective_coefficient(here.settings.alpha, directions.count, directions.dimension)
        return cls(directions, type(here.settings.directions).__name__, seed, here.parameters, beta, kept)

    @classmethod
    def again(cls, here: Here, state: dict[str, Any]) -> "Drawn":
        """Draw the directions of a snapshot's state again."""
        learner, count = here.learning.learner, state["probes"]
        if learner is None:
            family = here.settings.directions.at(here.parameters, state["kept"])
            directions = family.draw(here.parameters, count, seeded(state["seed"]))
        else:
            directions = learner.leading(count)
        return cls.of(here, directions, state["seed"], state["kept"])


def draw(here: Here, batches: Callable[[], Swept | None], keep: Drawn | None = None) -> Drawn | None:
    """Choose the directions of a new snapshot.

    Args:
        here: The present state of the run.
        batches: Gives the batches to warm up with; None if they cannot be known in advance.
        keep: The directions of the last snapshot, if random directions have to stay the same.

    Returns:
        The directions; None if the number of probes is 0, or if no directions have been learned yet.
    """
    trainer, settings = here.trainer, here.settings
    here.learning.learned_at = None
    choice = here.choice
    count = settings.most(trainer.current_epoch) if choice is None else chosen_count(choice, here.dimension)
    if count == 0:
        return None
    compat.drop_gradients(trainer, here.module, compat.batch_idx(trainer))
    if here.choice is None and settings.directions.learns:  # else the choice has seen to that
        begin_learning(here, batches, _warmup(here, count))
        assert here.learning.learner is not None
        if not here.learning.learner.ready:
            return None
    parameters, learner = here.parameters, here.learning.learner
    seed = here.seeds.of(f"snapshot {here.totals.snapshots}")
    kept = None
    if learner is not None:
        directions = learner.directions(count, seeded(seed)) if here.choice is None else learner.leading(count)
    elif keep is not None and keep.directions.count == count and same_tensors(keep.parameters, parameters):
        # New random directions would hold next to nothing of the rows, and no more of the noise.
        directions, kept = keep.directions, keep.kept
    else:
        family = settings.directions.at(parameters)
        directions, kept = family.draw(parameters, count, seeded(seed)), family.state()
    here.learning.coefficient = coefficient_of(settings.alpha, count, here.learning.coefficient)
    return Drawn.of(here, directions, seed, kept)


def chosen_count(choice: Choice, dimension: int) -> int:
    """How many directions a snapshot of a measured choice has: all that are learned where a look fills a table.

    Args:
        choice: The choice.
        dimension: ``d``, the number of weights.

    Returns:
        The number.
    """
    looks = choice.stage == "look" and not choice.sweeping
    return min(choice.schedule.maximum, dimension) if looks else choice.schedule.probes_at(0)


def learns_here(here: Here) -> bool:
    """Whether directions are being learned for the parameters that train at present; other parameters span another space."""
    return here.learning.learner is not None and same_tensors(here.parameters, here.learning.parameters)


def begin_learning(here: Here, batches: Callable[[], Swept | None], warmup: int) -> None:
    """Begin to learn directions, unless they are being learned; batches without a step may train the learner first.

    Args:
        here: The present state of the run.
        batches: See :func:`draw`.
        warmup: Number of batches to learn from.
    """
    if learns_here(here):
        return
    learning, parameters, most = here.learning, here.parameters, _most(here)
    learning.parameters = parameters
    learning.learner = here.settings.directions.learner(parameters, most, seeded(here.seeds.of("learner")))
    if warmup and compat.backward_is_watched(here.trainer):
        # Gradients of a warm-up would bypass the callback that looks at them, or masks them.
        _learn_from_steps(here, warmup, most)
    elif warmup:
        _warm_up(here, batches(), learning.learner, warmup, most)


def turn(here: Here) -> None:
    """Let the learner turn to the directions that it has learned."""
    learner, step = here.learning.learner, here.trainer.global_step
    if learner is not None:
        here.learning.turn_at = None
        learner.directions(_most(here), seeded(here.seeds.of(f"turn at step {step}")))


def _most(here: Here) -> int:
    """How many directions to learn: of a measured choice, at most as many as there are dimensions."""
    most = here.settings.most(here.trainer.current_epoch)
    return most if here.choice is None else min(most, here.dimension)


def _warmup(here: Here, probes: int) -> int:
    """How many batches to warm up with: of ``"auto"`` none, if the first epoch is long enough, and not the last."""
    batches = here.settings.directions.warmup_batches
    if batches != "auto":
        return batches
    steps = here.steps_per_epoch
    fewest = max(BURST, 2 * (probes + 1))
    if not has_plan(here.trainer) or steps < fewest or epochs_left(here) < 1 or here.learning.learner is not None:
        return BURST
    here.learning.turn_at = here.trainer.global_step + int(steps) // 2
    return 0


def _warm_up(here: Here, plan: Swept | None, learner: Learner, batches: int, probes: int) -> None:
    trainer = here.trainer
    if plan is None:  # there are no batches to look at before
        _learn_from_steps(here, batches, probes)
        return
    turned = functools.partial(learner.directions, probes, seeded(here.seeds.of("second pass of the warm-up")))
    # Fewer than one more than the probes cannot tell so many directions apart.
    count = max(min(batches, plan.length), probes + 1)
    start = time.perf_counter()
    with here.watch.looking_away(), probing(trainer, here.module, "warm-up"):
        seen = warm_up(trainer, here.module, plan, learner, here.learning.parameters, count, turned)
    here.totals.add_warmup(seen, time.perf_counter() - start)
    if not learner.ready:
        here.advice.on_short_warmup(trainer, probes, seen)


def _learn_from_steps(here: Here, batches: int, probes: int) -> None:
    """Learn from as many plain steps as a warm-up has batches; the sweep of a plan waits for the next epoch."""
    if not has_plan(here.trainer) or here.learning.changing_data:
        here.learning.learned_at = here.trainer.global_step + max(batches, probes + 1)
