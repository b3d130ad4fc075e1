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
from lightning_vamo.loop.control.base import Here
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


def draw(
    here: Here, batches: Callable[[], Swept | None], sweeps: Callable[[], float], keep: Drawn | None = None
) -> Drawn | None:
    """Choose the directions of a new snapshot.

    Args:
        here: The present state of the run.
        batches: Gives the batches to warm up with; None if they cannot be known in advance.
        sweeps: Gives how often a batch is probed per epoch, on average.
        keep: The directions of the last snapshot, if random directions have to stay the same.

    Returns:
        The directions; None if the number of probes is 0, or if no directions have been learned yet.
    """
    trainer, settings = here.trainer, here.settings
    here.learning.learned_at = None
    most = settings.most(trainer.current_epoch)
    if most == 0:
        return None
    compat.drop_gradients(trainer, here.module, trainer.fit_loop.batch_idx)
    if settings.directions.learns and not _learned(here, batches, most):
        return None
    parameters, learner = here.parameters, here.learning.learner
    seed = here.seeds.of(f"snapshot {here.totals.snapshots}")
    if learner is not None:
        learner.directions(most, seeded(seed))
    count = most if here.choice is None else _chosen(here, sweeps(), parameters)
    if count == 0:
        return None
    kept = None
    if learner is not None:
        directions = learner.leading(count)
    elif keep is not None and keep.directions.count == count and same_tensors(keep.parameters, parameters):
        # New random directions would hold next to nothing of the rows, and no more of the noise.
        directions, kept = keep.directions, keep.kept
    else:
        family = settings.directions.at(parameters)
        directions, kept = family.draw(parameters, count, seeded(seed)), family.state()
    here.learning.coefficient = coefficient_of(settings.alpha, count, here.learning.coefficient)
    return Drawn.of(here, directions, seed, kept)


def _chosen(here: Here, sweeps: float, parameters: Sequence[Tensor]) -> int:
    """The number of probes that measurement has chosen."""
    assert here.choice is not None
    here.catch_up()
    dimension = sum(parameter.numel() for parameter in parameters)
    learner, difference = here.learning.learner, here.settings.difference
    decision = here.choice.decide(here.trainer, learner, dimension, difference, sweeps)
    if decision.afresh:
        here.learning.coefficient = None
    return decision.probes


def _learned(here: Here, batches: Callable[[], Swept | None], probes: int) -> bool:
    """Whether directions have been learned; before the first snapshot, batches without a step may train the learner."""
    learning, family, parameters = here.learning, here.settings.directions, here.parameters
    # If parameters were frozen or thawed, directions have to be learned in another space.
    if learning.learner is None or not same_tensors(parameters, learning.parameters):
        learning.parameters = parameters
        learning.learner = family.learner(parameters, probes, seeded(here.seeds.of("learner")))
        if family.warmup_batches and compat.backward_is_watched(here.trainer):
            _learn_from_steps(
                here, probes
            )  # gradients of a warm-up would bypass the callback, which may read or mask gradients
        elif family.warmup_batches:
            _warm_up(here, batches(), learning.learner, probes)
    return learning.learner.ready


def _warm_up(here: Here, plan: Swept | None, learner: Learner, probes: int) -> None:
    trainer, family = here.trainer, here.settings.directions
    if plan is None:  # no batches are known before the steps
        _learn_from_steps(here, probes)
        return
    turn = functools.partial(learner.directions, probes, seeded(here.seeds.of("second pass of the warm-up")))
    # At least one gradient more than probes: fewer gradients cannot tell as many directions apart.
    count = max(min(family.warmup_batches, plan.length), probes + 1)
    start = time.perf_counter()
    with here.watch.looking_away(), probing(trainer, here.module, "warm-up"):
        seen = warm_up(trainer, here.module, plan, learner, here.learning.parameters, count, turn)
    here.totals.add_warmup(seen, time.perf_counter() - start)
    if not learner.ready:
        here.advice.on_short_warmup(trainer, probes, seen)


def _learn_from_steps(here: Here, probes: int) -> None:
    """Learn from as many plain steps as a warm-up has batches; the sweep of a plan waits for the next epoch."""
    if not has_plan(here.trainer) or here.learning.changing_data:
        here.learning.learned_at = here.trainer.global_step + max(here.settings.directions.warmup_batches, probes + 1)
