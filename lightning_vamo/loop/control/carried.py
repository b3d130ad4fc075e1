"""Carried rows in training: tables that begin with a sweep, or with an epoch of training."""

import dataclasses

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_vamo.core.control.carried import CarriedRows
from lightning_vamo.core.control.coefficients import Coefficient
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.mixing import Alpha, effective_coefficient
from lightning_vamo.core.directions import ProbeDirections
from lightning_vamo.loop.control.probed import Taken
from lightning_vamo.loop.control.settings import VAMOSettings
from lightning_vamo.loop.parameters import same_tensors, trainable_parameters
from lightning_vamo.loop.plan.plan import Plan, plan_of


def next_epoch(taken: Taken, plan: Plan, generator: torch.Generator) -> list[int]:
    """Let the coming epoch train on a snapshot's batches again, with the rows that the last one has left.

    Args:
        taken: The snapshot.
        plan: Its batches.
        generator: Source of the new order.

    Returns:
        The row of the plan that each step of the epoch takes, shape ``(K,)``.
    """
    control = taken.correction.control
    if not isinstance(control, CarriedRows):
        return plan.again(generator)
    control.begin_epoch()
    return plan.again(generator, control.group)


def fits(trainer: Trainer, taken: Taken) -> bool:
    """Whether each row still belongs to one optimizer step: accumulation may change between two epochs."""
    control = taken.correction.control
    return not isinstance(control, CarriedRows) or control.group == trainer.accumulate_grad_batches


def swept_rows(trainer: Trainer, taken: Taken, alpha: Alpha) -> Taken:
    """Let the steps refresh the rows that a sweep has measured.

    Args:
        trainer: The trainer.
        taken: The snapshot with its sweep.
        alpha: Mixing coefficient.

    Returns:
        The snapshot with carried rows.
    """
    correction, sweep = taken.correction, taken.sweep
    assert sweep is not None, "it has just been made"
    directions, group = correction.directions, trainer.accumulate_grad_batches
    deltas = directions.whiten(sweep.deltas)
    # Not the sweep's own coefficient: the rows of directions that it had to drop are refreshed like others.
    beta = effective_coefficient(alpha, directions.count, directions.dimension)
    control = CarriedRows(sweep.weights, directions.count, beta, group, deltas)
    carried = Correction(correction.parameters, directions, control, coefficient=correction.coefficient)
    return dataclasses.replace(taken, correction=carried, sweep=None)


def unswept_rows(
    trainer: Trainer,
    drawn: ProbeDirections,
    seed: int,
    before: Taken | None,
    settings: VAMOSettings,
    coefficient: Coefficient | None,
) -> Taken:
    """Turn to new directions without a sweep, or begin with a table that the epoch fills.

    Args:
        trainer: The trainer, whose epoch has drawn its first batch and not yet trained on it.
        drawn: The directions to turn to.
        seed: What they were drawn with.
        before: The table so far, whose batches the epoch goes on with; None if there is none.
        settings: What the run trains with.
        coefficient: What changes the effective coefficient from step to step.

    Returns:
        The table, in the directions that the epoch is to use.
    """
    parameters = trainable_parameters(trainer.optimizers)
    if before is not None and not same_tensors(parameters, before.correction.parameters):
        before = None
    last = None if before is None else before.correction.directions
    if last is not drawn and not settings.directions.learns:
        before = None  # random directions hold next to nothing of rows along others
    beta = effective_coefficient(settings.alpha, drawn.count, drawn.dimension)
    plan = plan_of(trainer) if before is None or before.plan is None else before.plan
    control = None if before is None else before.correction.control
    if before is None or not isinstance(control, CarriedRows):
        control = CarriedRows(_weights(trainer, plan), drawn.count, beta, trainer.accumulate_grad_batches)
    elif last is not None and last is not drawn:
        control.turn(last.turning(drawn, parameters))
    control.beta = beta
    correction = Correction(parameters, drawn, control, coefficient=coefficient)
    return Taken(trainer.current_epoch, seed, correction, plan, None, {"vamo/alpha": beta})


def _weights(trainer: Trainer, plan: Plan) -> Tensor:
    """Samples of each batch of the plan over all ranks, shape ``(K,)``, which takes a reduction of as many numbers."""
    sizes = torch.tensor(plan.sizes(), dtype=torch.float64, device=trainer.strategy.root_device)
    total: Tensor = trainer.strategy.reduce(sizes, reduce_op="sum")
    return total
