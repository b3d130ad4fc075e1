"""What a checkpoint holds of a run, beside Lightning's own state."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checkpoint.packing import packed
from lightning_vamo.loop.checkpoint.random_state import random_state
from lightning_vamo.loop.control.probed import snapshot_state
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.plan import Plan, has_plan, plan_of
from lightning_vamo.loop.run.standing import Standing

# What a rank's state holds: see `_state`.
KEYS = {
    *(
        "position",
        "first",
        "validating",
        "due",
        "step",
        "learned_at",
        "rows",
        "withheld",
        "unused",
        "moments",
        "steps",
        "factors",
    ),
    *("coefficient", "order", "learner", "plan", "reloaded", "snapshot", "random", "logs", "metrics", "gradients"),
}


def saved(trainer: Trainer, standing: Standing, directions: Directions) -> list[dict[str, Any]]:
    """What a checkpoint is to hold, called on all ranks together, as checkpoints are made.

    Args:
        trainer: The trainer, which is training.
        standing: Where this rank stands.
        directions: The family of probe directions.

    Returns:
        One state per rank on rank 0, which writes the checkpoint, and this rank's own elsewhere, as plain types and tensors.
        Empty if there is none that a checkpoint can hold; a warning says why.
    """
    try:
        own: dict[str, Any] | None = _state(trainer, standing, directions)
    except UnsupportedError as error:
        rank_zero_warn(f"{error} Until then, a run that resumes from this checkpoint takes a new snapshot.")
        own = None
    states = [own]
    if trainer.world_size > 1:
        gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
        torch.distributed.gather_object(own, gathered)
        states = gathered or states
    return [] if None in states else states  # type: ignore[return-value]  # None has been ruled out


def plan_within(trainer: Trainer, standing: Standing) -> Plan | None:
    """The plan that the run is in, or that it keeps for the epochs to come; None where the data has none."""
    if standing.taken is not None and standing.taken.plan is not None:
        return standing.taken.plan
    within = compat.position(trainer) is not None
    return standing.plan or (plan_of(trainer) if within and has_plan(trainer) else None)


def _state(trainer: Trainer, standing: Standing, directions: Directions) -> dict[str, Any]:
    module, position = trainer.lightning_module, compat.position(trainer)
    within = position is not None
    taken, plan = standing.taken, plan_within(trainer, standing)
    replays = taken is not None and taken.recomputation is None
    order = standing.order if replays else range(plan.length) if plan is not None else []
    # Not `compat.accumulates`, which tells of the batch that has begun.
    accumulating = (
        position is not None and position % trainer.accumulate_grad_batches > 0 and position < trainer.num_training_batches
    )
    parameters = trainable_parameters(trainer.optimizers) if accumulating else []
    state = {
        "position": None if position is None else position - standing.first,
        "first": standing.first,
        "validating": compat.in_validation(trainer),
        "due": standing.due,
        "step": standing.step,
        "learned_at": standing.learned_at,
        "rows": standing.rows,
        "withheld": standing.withheld,
        "unused": standing.unused,
        "moments": standing.moments if within else None,  # else they are an epoch's that has ended, and is not logged again
        "steps": standing.steps if within else 0,
        "factors": standing.factors if within else 0.0,
        "coefficient": standing.coefficient.state_dict() if isinstance(standing.coefficient, Regression) else None,
        "learner": None if standing.learner is None else standing.learner.state_dict(),
        "order": torch.tensor(order, dtype=torch.int64, device="cpu"),
        "plan": None if plan is None else plan_state(plan),
        "reloaded": compat.last_reload(trainer),
        "snapshot": None if taken is None else {"directions": type(directions).__name__, **snapshot_state(trainer, taken)},
        "random": random_state(module, loaders_of(trainer)),
        "logs": compat.log_state(trainer, within),
        "metrics": compat.metric_states(module) if within else {},
        "gradients": [None if p.grad is None else local(p.grad) for p in parameters],
    }
    # Copies in host memory: the live tensors go on changing.
    copied: dict[str, Any] = apply_to_collection(state, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
    return copied


def check_readable(readable: bool) -> None:
    """Refuse a state that another version of this package has written, or something else.

    Args:
        readable: Whether it has what it should.

    Raises:
        InvalidArgumentError: If it has not.
    """
    if not readable:
        raise InvalidArgumentError(
            "The checkpoint's state of VAMOCallback cannot be read: another version of lightning_vamo saved it, or it is"
            " damaged. Resume with the version that saved it, or delete that state from the checkpoint's `callbacks`: then"
            " the run goes on with a new snapshot."
        )


def plan_state(plan: Plan) -> dict[str, Any]:
    """A plan as plain types and tensors."""
    loaders = [[packed(batches) for batches in passes] for passes in plan.batches()]
    return {"length": plan.length, "keeps_order": plan.keeps_order, "loaders": loaders}


def loaders_of(trainer: Trainer) -> list[Any]:
    """The training loaders, in their order; none before they are set up."""
    loader = compat.train_loader(trainer)
    return [] if loader is None else loader.flattened
