"""Taking a snapshot: draw directions, sweep the epoch's batches, and make the correction that the epoch's steps apply."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.adaptive import Coefficient
from lightning_vamo.core.carried import CarriedRows
from lightning_vamo.core.control_variate import ControlVariate
from lightning_vamo.core.correction import Correction
from lightning_vamo.core.directions import Directions, ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.mixing import Alpha, effective_coefficient
from lightning_vamo.core.probes import Difference, auto_mu
from lightning_vamo.loop import compat, support
from lightning_vamo.loop.driver import GradientCallback, Mode
from lightning_vamo.loop.plan import Plan, plan_of
from lightning_vamo.loop.precision import SweepPrecision, arithmetic
from lightning_vamo.loop.sweep import Sweep, sweep


@dataclass(frozen=True)
class Taken:
    """What came of a snapshot.

    Attributes:
        epoch: The epoch that it was taken in.
        seed: Seed of the directions.
        correction: Corrects the gradients of the epoch's steps.
        plan: The batches that its rows belong to.
        sweep: What the sweep measured, and took; None where rows are carried, which are no longer what it measured.
        logs: Figures to log.
    """

    epoch: int
    seed: int
    correction: Correction
    plan: Plan
    sweep: Sweep | None
    logs: dict[str, float]


def take_snapshot(
    trainer: Trainer,
    module: LightningModule,
    driver: GradientCallback,
    drawn: ProbeDirections,
    seed: int,
    *,
    mu: float | Literal["auto"],
    steep: bool,
    alpha: Alpha,
    coefficient: Coefficient | None,
    difference: Difference,
    sweep_precision: SweepPrecision,
) -> Taken:
    """Take a snapshot of the weights as they are.

    Args:
        trainer: The trainer, whose epoch has drawn its first batch and not yet trained on it.
        module: Its module.
        driver: The callback that answers the module's ``training_step``.
        drawn: The probe directions.
        seed: What they were drawn with.
        mu: Smoothing radius, or ``"auto"``.
        steep: Whether losses are expected to change more along them than along random ones.
        alpha: Mixing coefficient.
        coefficient: What changes it from step to step.
        difference: ``"forward"`` or ``"central"``.
        sweep_precision: ``"32-true"``, or None for the Trainer's.

    Returns:
        The correction, and what it took.
    """
    parameters = support.trainable_parameters(trainer.optimizers)
    plan = plan_of(trainer)
    radius = mu
    if radius == "auto":
        radius = auto_mu(parameters, difference, arithmetic(trainer, sweep_precision), steep=steep)

    def evaluate(batch: Any, position: int) -> Any:
        driver.probed_position = position
        return compat.run_training_step(trainer, batch, position)

    driver.probes_in_float32 = sweep_precision is not None
    with driver.mode(Mode.PROBE):
        result = sweep(trainer, module, plan, evaluate, parameters, drawn, radius, difference)
    correction = _correction(parameters, drawn, result, alpha, coefficient)
    logs = {
        "vamo/alpha": correction.control.beta,
        "vamo/mu": radius,
        "vamo/snapshot_loss": result.snapshot_loss,
        "vamo/sweep_seconds": result.seconds,
        "vamo/directions_dropped": result.directions_dropped,
        **({} if result.snr is None else {"vamo/probe_snr": result.snr}),
    }
    return Taken(epoch=trainer.current_epoch, seed=seed, correction=correction, plan=plan, sweep=result, logs=logs)


def snapshot_state(taken: Taken) -> dict[str, Any]:
    """What a checkpoint holds of a snapshot, as plain types and tensors: the table, and what its directions are drawn from."""
    directions, control = taken.correction.directions, taken.correction.control
    return {
        "epoch": taken.epoch,
        "seed": taken.seed,
        "probes": directions.count,
        "dimension": directions.dimension,
        "sweep": None if taken.sweep is None else asdict(taken.sweep),
        "carried": control.state_dict() if isinstance(control, CarriedRows) else None,
        "logs": taken.logs,
    }


def resumed_snapshot(
    trainer: Trainer,
    state: dict[str, Any],
    plan: Plan,
    directions: Directions,
    learner: Learner | None,
    alpha: Alpha,
    coefficient: Coefficient | None,
) -> Taken:
    """Take up a snapshot from a checkpoint.

    Args:
        trainer: The trainer.
        state: What :func:`snapshot_state` gave.
        plan: The batches that its rows belong to.
        directions: The family of probe directions.
        learner: What has learned some, as it was when the checkpoint was saved, if the family learns.
        alpha: Mixing coefficient.
        coefficient: What changes it from step to step.

    Returns:
        The snapshot as it was.
    """
    parameters = support.trainable_parameters(trainer.optimizers)
    if learner is None:
        drawn = directions.draw(parameters, state["probes"], seeded(state["seed"]))
    else:
        drawn = learner.leading(state["probes"])
    device = trainer.strategy.root_device
    sweep = None
    if state["sweep"] is None:
        carried = CarriedRows.of(state["carried"], device, effective_coefficient(alpha, drawn.count, drawn.dimension))
        correction = Correction(parameters, drawn, carried, coefficient=coefficient)
    else:
        measured: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state["sweep"].items()}
        sweep = Sweep(**measured)
        correction = _correction(parameters, drawn, sweep, alpha, coefficient)
    return Taken(epoch=state["epoch"], seed=state["seed"], correction=correction, plan=plan, sweep=sweep, logs=state["logs"])


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


def seeded(seed: int) -> torch.Generator:
    """A generator of its own with that seed."""
    return torch.Generator().manual_seed(seed)
