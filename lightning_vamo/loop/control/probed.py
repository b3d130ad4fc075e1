"""Snapshots whose rows are probe differences: how many probes, along which directions, and the sweep that measures them."""

import functools
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import coefficient_of, effective_coefficient
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.probes.radius import auto_mu, followed
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.base import Control, Here, Snapshot
from lightning_vamo.loop.control.warmup import warm_up
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import observers, probing
from lightning_vamo.loop.parameters import same_tensors
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.sweep.precision import is_mixed, uses_tf32
from lightning_vamo.loop.sweep.repeat import ChangingLossError
from lightning_vamo.loop.sweep.sweep import Sweep, sweep


class Probed(Snapshot):
    """A snapshot with probe directions.

    Args:
        epoch: See :class:`Snapshot`.
        drawn: The directions.
        correction: Corrects the gradients of the steps.
        logs: See :class:`Snapshot`.

    Attributes:
        drawn: As given.
        correction: As given.
        sweep: What a sweep measured at the snapshot; None if there was none, or if its rows have been replaced since.
    """

    def __init__(self, epoch: int, drawn: "Drawn", correction: Correction, logs: dict[str, float]) -> None:
        self.epoch = epoch
        self.drawn = drawn
        self.correction = correction
        self.logs = {"alpha": correction.control.beta, **logs}
        self.plan = None
        self.sweep: Sweep | None = None

    @property
    def directions(self) -> ProbeDirections:
        """The probe directions."""
        return self.correction.directions

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The parameters that are corrected."""
        return self.correction.parameters

    @property
    def count(self) -> int:
        """See :attr:`Snapshot.count`."""
        return self.directions.count

    @property
    def factors(self) -> Tensor | float:  # type: ignore[override]
        """See :class:`Snapshot`."""
        return self.correction.factors

    def correct(
        self,
        rows: Sequence[Any],
        accumulated: int,
        scale: Callable[[Tensor], Tensor] | None,
        progress: float,
        slopes: Tensor | None,
    ) -> Tensor | None:
        """See :meth:`Snapshot.correct`."""
        return self.correction.apply(rows, accumulated, scale, progress, slopes)

    def withheld(
        self, row: Any, accumulated: int, scale: Callable[[Tensor], Tensor] | None, progress: float
    ) -> AbstractContextManager[None]:
        """See :meth:`Snapshot.withheld`."""
        return self.correction.withheld(row, accumulated, scale, progress)

    def known_slopes(self, learner: Learner | None) -> Tensor | None:
        """See :meth:`Snapshot.known_slopes`."""
        return learner.slopes if learner is not None and learner.current is self.directions else None

    def total(self, moments: Tensor) -> Tensor:
        """See :meth:`Snapshot.total`."""
        return self.correction.total(moments)

    def state_dict(self, trainer: Any) -> dict[str, Any]:
        """See :meth:`Snapshot.state_dict`."""
        return {
            "kind": self.kind,
            "epoch": self.epoch,
            "seed": self.drawn.seed,
            "probes": self.directions.count,
            "dimension": self.directions.dimension,
            "directions": self.drawn.family,
            "logs": self.logs,
            "rows": self.row_state(trainer),
        }

    @abstractmethod
    def row_state(self, trainer: Any) -> dict[str, Any]:
        """What a checkpoint holds of the rows, as plain types and tensors."""


class ProbedControl(Control):
    """A control variate of probe differences: :class:`Replay`, :class:`Carry` or :class:`Recompute`."""


@dataclass(frozen=True)
class Drawn:
    """Probe directions, and what they are drawn from again after a resume.

    Attributes:
        directions: The directions.
        family: Name of their family.
        seed: What they were drawn with, if they are random.
        parameters: The parameters that they are for.
        beta: The effective coefficient of their rows.
    """

    directions: ProbeDirections
    family: str
    seed: int
    parameters: Sequence[Tensor]
    beta: float

    @classmethod
    def of(cls, here: Here, directions: ProbeDirections, seed: int) -> "Drawn":
        """Directions for the parameters of a run."""
        beta = effective_coefficient(here.settings.alpha, directions.count, directions.dimension)
        return cls(directions, type(here.settings.directions).__name__, seed, here.parameters, beta)

    @classmethod
    def again(cls, here: Here, state: dict[str, Any]) -> "Drawn":
        """The directions of a snapshot's state."""
        learner, count = here.learning.learner, state["probes"]
        if learner is None:
            directions = here.settings.directions.draw(here.parameters, count, seeded(state["seed"]))
        else:
            directions = learner.leading(count)
        return cls.of(here, directions, state["seed"])


def draw(
    here: Here, batches: Callable[[], Swept | None], sweeps: Callable[[], float], keep: Probed | None = None
) -> Drawn | None:
    """Turn to the directions of a new snapshot.

    Args:
        here: Where the run stands.
        batches: Gives the batches to warm up with; None if they cannot be told beforehand.
        sweeps: Gives how often a batch is probed per epoch, on average.
        keep: The last snapshot, if random directions are to stay what they are.

    Returns:
        The directions; None if there are to be no probes, or if no directions have been learned yet.
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
    if learner is not None:
        directions = learner.leading(count)
    elif keep is not None and keep.count == count and same_tensors(keep.parameters, parameters):
        directions = keep.directions  # other random ones would hold next to nothing of the rows, and no more of the noise
    else:
        directions = settings.directions.draw(parameters, count, seeded(seed))
    here.learning.coefficient = coefficient_of(settings.alpha, count, here.learning.coefficient)
    return Drawn.of(here, directions, seed)


def _chosen(here: Here, sweeps: float, parameters: Sequence[Tensor]) -> int:
    """The number of probes, where it is chosen by measurement."""
    assert here.choice is not None
    here.catch_up()
    dimension = sum(parameter.numel() for parameter in parameters)
    learner, difference = here.learning.learner, here.settings.difference
    decision = here.choice.decide(here.trainer, learner, dimension, difference, sweeps)
    if decision.afresh:
        here.learning.coefficient = None
    return decision.probes


def _learned(here: Here, batches: Callable[[], Swept | None], probes: int) -> bool:
    """Whether directions have been learned; before a learner's first snapshot, batches that take no step may help."""
    learning, family, parameters = here.learning, here.settings.directions, here.parameters
    # Other parameters, since some were frozen or thawed, span another space.
    if learning.learner is None or not same_tensors(parameters, learning.parameters):
        learning.parameters = parameters
        learning.learner = family.learner(parameters, probes, seeded(here.seeds.of("learner")))
        if family.warmup_batches:
            _warm_up(here, batches(), learning.learner, probes)
    return learning.learner.ready


def _warm_up(here: Here, plan: Swept | None, learner: Learner, probes: int) -> None:
    trainer, family = here.trainer, here.settings.directions
    if plan is None:  # there are no batches to look at before: as many steps are plain
        here.learning.learned_at = trainer.global_step + max(family.warmup_batches, probes + 1)
        return
    turn = functools.partial(learner.directions, probes, seeded(here.seeds.of("second pass of the warm-up")))
    # Fewer than one more than the probes cannot tell so many directions apart.
    count = max(min(family.warmup_batches, plan.length), probes + 1)
    start = time.perf_counter()
    with here.watch.looking_away(), probing(trainer, here.module, "warm-up"):
        seen = warm_up(trainer, here.module, plan, learner, here.learning.parameters, count, turn)
    here.totals.add_warmup(seen, time.perf_counter() - start)
    if not learner.ready:
        here.advice.on_short_warmup(trainer, probes, seen)


def radius(here: Here) -> tuple[float, bool]:
    """The smoothing radius of a snapshot.

    Args:
        here: Where the run stands.

    Returns:
        The radius, and whether to search for a better one from there: if the radius is a guess.
    """
    settings = here.settings
    if settings.mu != "auto":
        return settings.mu, False
    if here.learning.mu is not None:
        return here.learning.mu, False
    # Losses change more along learned directions than along random ones.
    steep = settings.directions.learns
    guess = auto_mu(here.parameters, settings.difference, here.oracle.arithmetic, steep=steep, robust=True)
    return guess, True


def measure(here: Here, drawn: Drawn, plan: Swept) -> tuple[Sweep, dict[str, float]] | None:
    """Sweep the batches of a plan at the snapshot, count what that took, and warn of what went less than well.

    Args:
        here: Where the run stands.
        drawn: The directions.
        plan: The batches.

    Returns:
        What the sweep measured, and figures to log. None if the loss turned out not to be a function of the parameters, and
        steps have been corrected before.

    Raises:
        UnsupportedError: If the loss turned out not to be a function of the parameters at the run's first snapshot.
    """
    trainer, module, settings = here.trainer, here.module, here.settings
    mu, search = radius(here)
    try:
        with probing(trainer, module, "sweep"), here.watch.looking_away(), here.oracle.asking():
            swept = sweep(here.oracle, plan, drawn.parameters, drawn.directions, mu, settings.difference, search=search)
    except ChangingLossError as error:
        here.advice.on_changing_loss(error, first=here.totals.snapshots == 0)
        return None
    if settings.mu == "auto":
        here.learning.mu = followed(swept.mu, swept.snr, swept.trend)
    for observer in observers(trainer):
        observer.on_sweep(trainer, module, swept)
    here.totals.add_sweep(swept.evaluations, swept.seconds)
    _advise(here, drawn, swept)
    if here.choice is not None:
        here.choice.swept(swept.seconds / swept.evaluations)
    logs = {
        "mu": swept.mu,
        "snapshot_loss": swept.snapshot_loss,
        "sweep_seconds": swept.seconds,
        "directions_dropped": swept.directions_dropped,
        **({} if swept.snr is None else {"probe_snr": swept.snr}),
    }
    return swept, logs


def _advise(here: Here, drawn: Drawn, swept: Sweep) -> None:
    """Warn of what went less than well."""
    settings, tf32 = here.settings, uses_tf32(here.trainer)
    mixed = is_mixed(here.trainer, settings.sweep_precision)
    here.advice.on_dropped(swept.directions_dropped, drawn.directions.count, swept.mu)
    here.advice.on_not_finite(swept.not_finite, len(swept.deltas))
    if settings.mu != "auto" or here.learning.mu == swept.mu:  # else the next radius is a better one
        central = settings.difference == "central"
        here.advice.on_snr(swept.snr, swept.trend, swept.mu, central=central, mixed=mixed, tf32=tf32)
