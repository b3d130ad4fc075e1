"""Taking a snapshot: sweep the epoch's batches, and make the correction that the steps apply."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import Alpha, effective_coefficient
from lightning_vamo.core.control.running import RecomputedControlVariate
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.probes.radius import auto_mu
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.recomputed import Recomputation, snapshot_steps
from lightning_vamo.loop.control.settings import VAMOSettings
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.observer import observers, probing
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.plan import Plan
from lightning_vamo.loop.plan.reread import Swept
from lightning_vamo.loop.step.driver import GradientCallback, Mode
from lightning_vamo.loop.sweep.precision import arithmetic
from lightning_vamo.loop.sweep.sweep import Sweep, sweep


@dataclass(frozen=True)
class Taken:
    """What came of a snapshot.

    Attributes:
        epoch: The epoch that it was taken in.
        seed: Seed of the directions.
        correction: Corrects the gradients of the epoch's steps.
        plan: The batches that its rows belong to; None if rows are recomputed.
        sweep: What the sweep measured, and took; None if there was none, and where rows are carried, which are no longer what
            it measured.
        logs: Figures to log.
        recomputation: Recomputes rows, step by step; None if they are the sweep's.
    """

    epoch: int
    seed: int
    correction: Correction
    plan: Plan | None
    sweep: Sweep | None
    logs: dict[str, float]
    recomputation: Recomputation | None = None

    @property
    def kind(self) -> Literal["replayed", "carried", "recomputed"]:
        """What becomes of its rows from step to step."""
        if self.recomputation is not None:
            return "recomputed"
        return "carried" if isinstance(self.correction.control, CarriedRows) else "replayed"

    @property
    def directions(self) -> ProbeDirections:
        """The probe directions."""
        return self.correction.directions

    @property
    def parameters(self) -> Sequence[Tensor]:
        """The parameters that are corrected."""
        return self.correction.parameters

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether it is of this loader's data: a reloaded loader may hold other data."""
        if self.recomputation is not None:
            return self.recomputation.loader is loader
        return self.plan is not None and self.plan.belongs_to(loader)


def take_snapshot(
    trainer: Trainer,
    module: LightningModule,
    driver: GradientCallback,
    settings: VAMOSettings,
    drawn: ProbeDirections,
    seed: int,
    coefficient: Coefficient | None,
    plan: Swept | None,
    *,
    recompute: bool,
) -> Taken:
    """Take a snapshot of the weights as they are.

    Args:
        trainer: The trainer, whose epoch has drawn its first batch and not yet trained on it.
        module: Its module.
        driver: The callback that answers the module's ``training_step``.
        settings: How to probe, and how to use what comes of it.
        drawn: The probe directions.
        seed: What they were drawn with.
        coefficient: What changes the mixing coefficient from step to step.
        plan: The epoch's batches, or another reading of the data, to be swept; None if it cannot be read twice.
        recompute: Whether the rows are recomputed, and the sweep is for their mean only.

    Returns:
        The correction, and what it took.
    """
    parameters, difference, alpha = trainable_parameters(trainer.optimizers), settings.difference, settings.alpha
    period = snapshot_steps(trainer, settings) if recompute else None
    mu = settings.mu
    if mu == "auto":
        # Losses change more along learned directions than along random ones.
        mu = auto_mu(parameters, difference, arithmetic(trainer, settings.sweep_precision), steep=settings.directions.learns)

    result = None
    if plan is not None:
        swept = plan.without_replacement(seeded(seed)) if recompute else plan
        evaluate = functools.partial(driver.probed_loss, trainer)
        with probing(trainer, module, "sweep"), driver.mode(Mode.PROBE):
            result = sweep(trainer, module, swept, evaluate, parameters, drawn, mu, difference)
        for observer in observers(trainer):
            observer.on_sweep(trainer, module, result)
    recomputation = None
    if recompute or result is None or not isinstance(plan, Plan):
        control = _recomputed(drawn, result, alpha)
        loader = compat.train_loader(trainer)
        usable = None if result is None else result.deltas.any(dim=0)  # the columns of dropped directions are zero
        recomputation = Recomputation(parameters, drawn, control, mu, difference, loader, period, usable)
        correction, replayed = Correction(parameters, drawn, control, None, coefficient), None
    else:
        correction, replayed = _correction(parameters, drawn, result, alpha, coefficient), plan
    logs = {"vamo/alpha": correction.control.beta, "vamo/mu": mu, **({} if result is None else _figures(result))}
    return Taken(trainer.current_epoch, seed, correction, replayed, result, logs, recomputation)


def _figures(sweep: Sweep) -> dict[str, float]:
    return {
        "vamo/snapshot_loss": sweep.snapshot_loss,
        "vamo/sweep_seconds": sweep.seconds,
        "vamo/directions_dropped": sweep.directions_dropped,
        **({} if sweep.snr is None else {"vamo/probe_snr": sweep.snr}),
    }


def snapshot_state(trainer: Trainer, taken: Taken) -> dict[str, Any]:
    """What a checkpoint holds of a snapshot, as plain types and tensors, beside what its directions are drawn from.

    Args:
        trainer: The trainer.
        taken: The snapshot.

    Returns:
        The table, or what recomputes its rows.
    """
    recomputation, replayed = taken.recomputation, taken.sweep if taken.recomputation is None else None
    directions, control = taken.correction.directions, taken.correction.control
    return {
        "epoch": taken.epoch,
        "seed": taken.seed,
        "probes": directions.count,
        "dimension": directions.dimension,
        "sweep": None if replayed is None else asdict(replayed),
        "carried": control.state_dict() if isinstance(control, CarriedRows) else None,
        "logs": taken.logs,
        "recomputation": None if recomputation is None else recomputation.state_dict(trainer),
    }


def resumed_snapshot(
    trainer: Trainer,
    state: dict[str, Any],
    plan: Plan | None,
    settings: VAMOSettings,
    learner: Learner | None,
    coefficient: Coefficient | None,
) -> Taken:
    """Take up a snapshot from a checkpoint.

    Args:
        trainer: The trainer.
        state: What :func:`snapshot_state` gave.
        plan: The epoch's batches, to which the rows of a table belong.
        settings: Those of the present run.
        learner: What has learned directions, as it was when the checkpoint was saved, if the family learns.
        coefficient: What changes the mixing coefficient from step to step.

    Returns:
        The snapshot as it was.
    """
    parameters, alpha = trainable_parameters(trainer.optimizers), settings.alpha
    if learner is None:
        drawn = settings.directions.draw(parameters, state["probes"], seeded(state["seed"]))
    else:
        drawn = learner.leading(state["probes"])
    device = trainer.strategy.root_device
    state = apply_to_collection(state, Tensor, lambda tensor: tensor.to(device))
    if state["recomputation"] is not None:
        recomputation = Recomputation.of(state["recomputation"], parameters, drawn, compat.train_loader(trainer))
        recomputation.control.beta = effective_coefficient(alpha, drawn.count, drawn.dimension)
        correction = Correction(parameters, drawn, recomputation.control, None, coefficient)
        return Taken(state["epoch"], state["seed"], correction, None, None, state["logs"], recomputation)
    if state["carried"] is not None:
        carried = CarriedRows.of(state["carried"], device, effective_coefficient(alpha, drawn.count, drawn.dimension))
        correction = Correction(parameters, drawn, carried, coefficient=coefficient)
        return Taken(state["epoch"], state["seed"], correction, plan, None, state["logs"])
    sweep = Sweep(**state["sweep"])
    correction = _correction(parameters, drawn, sweep, alpha, coefficient)
    return Taken(state["epoch"], state["seed"], correction, plan, sweep, state["logs"])


def _recomputed(directions: ProbeDirections, sweep: Sweep | None, alpha: Alpha) -> RecomputedControlVariate:
    beta = effective_coefficient(alpha, directions.count, directions.dimension)
    if sweep is None:
        return RecomputedControlVariate(beta)
    mean = directions.whiten(ControlVariate(sweep.deltas, sweep.weights, beta).mean)
    return RecomputedControlVariate(beta, mean)


def _correction(
    parameters: Sequence[Tensor],
    directions: ProbeDirections,
    sweep: Sweep,
    alpha: Alpha,
    coefficient: Coefficient | None,
) -> Correction:
    # Without a direction left there is nothing to correct, which is what a coefficient of zero says.
    left = sweep.directions_dropped < directions.count
    beta = effective_coefficient(alpha, directions.count, directions.dimension) if left else 0.0
    tables = (directions.whiten(deltas) for deltas in (sweep.deltas, sweep.own))
    control, own = (ControlVariate(table, sweep.weights, beta) for table in tables)
    return Correction(parameters, directions, control, own, coefficient)
