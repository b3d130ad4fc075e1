"""Taking a snapshot: draw directions, sweep the epoch's batches, and make the correction that the epoch's steps apply."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_vamo.core.control_variate import ControlVariate
from lightning_vamo.core.correction import Correction
from lightning_vamo.core.directions import Directions
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
        correction: Corrects the gradients of the epoch's steps.
        plan: The batches that its rows belong to.
        sweep: What the sweep measured, and took.
        logs: Figures to log.
    """

    correction: Correction
    plan: Plan
    sweep: Sweep
    logs: dict[str, float]


def take_snapshot(
    trainer: Trainer,
    module: LightningModule,
    driver: GradientCallback,
    directions: Directions,
    generator: torch.Generator,
    *,
    probes: int,
    mu: float | Literal["auto"],
    alpha: Alpha,
    difference: Difference,
    sweep_precision: SweepPrecision,
    batch_idx: int,
) -> Taken:
    """Take a snapshot of the weights as they are.

    Args:
        trainer: The trainer, whose epoch has drawn its first batch and not yet trained on it.
        module: Its module.
        driver: The callback that answers the module's ``training_step``.
        directions: The family of probe directions.
        generator: Source of the directions.
        probes: ``q``, at least 1.
        mu: Smoothing radius, or ``"auto"``.
        alpha: Mixing coefficient, or ``"theory"``.
        difference: ``"forward"`` or ``"central"``.
        sweep_precision: ``"32-true"``, or None for the Trainer's.
        batch_idx: Index of the batch that comes next.

    Returns:
        The correction, and what it took.
    """
    parameters = support.trainable_parameters(trainer.optimizers)
    plan = plan_of(trainer)
    drawn = directions.draw(parameters, probes, generator)
    compat.drop_gradients(trainer, module, batch_idx)
    radius = auto_mu(parameters, difference, arithmetic(trainer, sweep_precision)) if mu == "auto" else mu

    def evaluate(batch: Any, position: int) -> Any:
        driver.probed_position = position
        return compat.run_training_step(trainer, batch, position)

    driver.probes_in_float32 = sweep_precision is not None
    with driver.mode(Mode.PROBE):
        result = sweep(trainer, module, plan, evaluate, parameters, drawn, radius, difference)
    # Without a direction left there is nothing to correct, which is what a coefficient of zero says.
    beta = effective_coefficient(alpha, probes, drawn.dimension) if result.directions_dropped < probes else 0.0
    control, own = (ControlVariate(deltas, result.weights, beta) for deltas in (result.deltas, result.own))
    return Taken(
        correction=Correction(parameters, drawn, control, own),
        plan=plan,
        sweep=result,
        logs={
            "vamo/alpha": beta,
            "vamo/mu": radius,
            "vamo/snapshot_loss": result.snapshot_loss,
            "vamo/sweep_seconds": result.seconds,
            "vamo/directions_dropped": result.directions_dropped,
            **({} if result.snr is None else {"vamo/probe_snr": result.snr}),
        },
    )
