"""What a checkpoint needs beside Lightning's own state, so that a run that dies goes on bit for bit.

Lightning's checkpoints hold weights, optimizers and counters. Each rank adds where it stands: its plan of batches and its
position in it, the rows that its steps still need, its random states, and what the epoch has logged so far.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lightning_vamo.core.adaptive import Regression
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.mixing import coefficient_of
from lightning_vamo.core.schedules import ProbeSchedule
from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat, support
from lightning_vamo.loop.packing import packed, random_state, set_random_state, unpacked
from lightning_vamo.loop.plan import Plan, has_plan, plan_of, remaining
from lightning_vamo.loop.recording import Pass, RecordingBatchSampler
from lightning_vamo.loop.settings import VAMOSettings
from lightning_vamo.loop.snapshot import resumed_snapshot, seeded, snapshot_state
from lightning_vamo.loop.standing import Standing

# What a rank's state holds: see `_state`.
_KEYS = {
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
    parameters = support.trainable_parameters(trainer.optimizers) if accumulating else []
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
        "random": random_state(module, _loaders(trainer)),
        "logs": compat.log_state(trainer, within),
        "metrics": compat.metric_states(module) if within else {},
        "gradients": [None if p.grad is None else local(p.grad) for p in parameters],
    }
    # Copies in host memory: the live tensors go on changing.
    copied: dict[str, Any] = apply_to_collection(state, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
    return copied


class Resumption:
    """A run that goes on from a checkpoint, until its first batch.

    Args:
        trainer: The trainer.
        ranks: What :func:`saved` gave.
        checkpoint: The checkpoint, before Lightning's loops read it.

    Raises:
        InvalidArgumentError: If the states cannot be read, or another number of processes saved them within an epoch.
    """

    def __init__(self, trainer: Trainer, ranks: Sequence[dict[str, Any]], checkpoint: dict[str, Any]) -> None:
        check_readable(set().union(*ranks) == _KEYS)
        within = ranks[0]["position"] is not None
        if within or ranks[0]["snapshot"] is not None:
            _check_fits("the number of processes", len(ranks), trainer.world_size)
        # Between snapshots nothing is missing but the random states, and those of other processes are of no use.
        self._state = ranks[trainer.global_rank] if len(ranks) == trainer.world_size else None
        if self._state is not None and self._state["snapshot"] is not None:
            recomputation = self._state["snapshot"]["recomputation"]
            if recomputation is not None and recomputation["origin"] is None:  # saved once, as it is the same on every rank
                recomputation["origin"] = ranks[0]["snapshot"]["recomputation"]["origin"]
        self._within = within
        self._in_validation = within and ranks[0]["validating"]
        self._ends_batch = within and (compat.end_batch_on_resume(checkpoint) or self._in_validation)
        self._ended_epoch = not within and compat.ended_epoch(checkpoint)

    def replay(self, recorder: RecordingBatchSampler, index: int) -> None:
        """Let a loader begin with what is left of its epoch.

        Args:
            recorder: Its recorder, from which nothing has been drawn.
            index: Its place among the loaders.
        """
        if self._state is None or not self._within or self._state["plan"] is None:
            return
        plan, order, position = self._state["plan"], self._state["order"].tolist(), self._state["position"]
        # Of an epoch that is over nothing is left to read, and the next one is to draw its own.
        if position < plan["length"] and index < len(plan["loaders"]):
            passes = [unpacked(batches) for batches in plan["loaders"][index]]
            recorder.replay(remaining(passes, position, None if plan["keeps_order"] else order))

    @contextmanager
    def taken_up(self, trainer: Trainer, settings: VAMOSettings, schedule: ProbeSchedule) -> Iterator[Standing]:
        """Stand where the interrupted run stood, and let Lightning's loops go on from there.

        Args:
            trainer: The trainer, about to train.
            settings: Those of the present run.
            schedule: Its number of probes, with what has been measured to choose it by.

        Yields:
            Where the run stands.

        Raises:
            InvalidArgumentError: If the table of the checkpoint does not fit the present run.
        """
        if self._state is None:
            yield Standing()
            return
        standing = self._standing(trainer, self._state, settings, schedule)
        if self._within:
            compat.resume_schedulers(trainer)
        compat.set_last_reload(trainer, self._state["reloaded"])
        restore = functools.partial(self._restore if self._within else self._begin_epoch, trainer)
        resumable = self._state["plan"] is not None
        with compat.continued(trainer, restore, within=self._within, end_batch=self._ends_batch, resumable=resumable):
            yield standing

    def _standing(self, trainer: Trainer, state: dict[str, Any], settings: VAMOSettings, schedule: ProbeSchedule) -> Standing:
        device = trainer.strategy.root_device
        standing = Standing(
            order=state["order"].tolist(),
            # Without a plan the loader begins anew, and a plan that is made then begins with the batch that comes next.
            first=state["first"] + (state["position"] or 0 if state["plan"] is None else 0),
            due=state["due"],
            step=state["step"],
            learned_at=state["learned_at"],
            rows=[row.to(device) if isinstance(row, Tensor) else row for row in state["rows"]],
            withheld=state["withheld"],
            unused=state["unused"],
            steps=state["steps"],
            factors=state["factors"],
            moments=None if state["moments"] is None else state["moments"].to(device),
            plan=resumed_plan(trainer, state["plan"]) if self._within and state["plan"] is not None else None,
        )
        if state["coefficient"] is not None and settings.alpha == "adaptive":
            standing.coefficient = Regression.of(state["coefficient"])
        elif state["snapshot"] is not None:
            standing.coefficient = coefficient_of(settings.alpha, state["snapshot"]["probes"], None)
        snapshot, parameters = state["snapshot"], support.trainable_parameters(trainer.optimizers)
        if snapshot is not None:
            then = "replay" if snapshot["recomputation"] is None else "recompute"
            _check_fits("`control`", then, then if settings.control == "auto" else settings.control)
            if state["plan"] is not None:
                _check_fits("the number of batches per epoch", state["plan"]["length"], trainer.num_training_batches)
            dimension = sum(parameter.numel() for parameter in parameters)
            _check_fits("the family of directions", snapshot["directions"], type(settings.directions).__name__)
            _check_fits("the number of trainable parameters", snapshot["dimension"], dimension)
            _check_fits("the number of probes", snapshot["probes"], schedule.probes_at(snapshot["epoch"]))
            _check_fits("`carry`", snapshot["carried"] is not None, settings.carry)
            if snapshot["carried"] is not None and self._within:
                group = snapshot["carried"]["group"]
                _check_fits("the number of accumulated batches", group, trainer.accumulate_grad_batches)
        if state["learner"] is not None and settings.directions.learns:
            learner = settings.directions.learner(parameters, 1, seeded(0))
            # Between snapshots settings may change; what was learned for others is then learned anew.
            with suppress(InvalidArgumentError) if snapshot is None else nullcontext():
                learner.load_state_dict(state["learner"])
                standing.learner, standing.parameters = learner, parameters
        if snapshot is not None:
            plan = None if state["plan"] is None else resumed_plan(trainer, state["plan"])
            standing.taken = resumed_snapshot(trainer, snapshot, plan, settings, standing.learner, standing.coefficient)
        return standing

    def _restore(self, trainer: Trainer) -> None:
        assert self._state is not None
        module = trainer.lightning_module
        compat.set_log_state(trainer, module, self._state["logs"], self._state["position"])
        compat.set_metric_states(module, self._state["metrics"])
        if self._state["gradients"]:
            parameters = support.trainable_parameters(trainer.optimizers)
            for parameter, gradient in zip(parameters, self._state["gradients"], strict=True):
                if gradient is not None:
                    parameter.grad = torch.zeros_like(parameter)
                    local(parameter.grad).copy_(gradient)
        set_random_state(self._state["random"], _loaders(trainer))

    def _begin_epoch(self, trainer: Trainer) -> None:
        assert self._state is not None
        compat.set_log_state(trainer, trainer.lightning_module, self._state["logs"], None)
        if self._ended_epoch:
            compat.step_plateau_schedulers(trainer)
        set_random_state(self._state["random"], _loaders(trainer))

    def validation_starts(self, trainer: Trainer) -> None:
        """Take up the random states from within a validation, which is done anew: its loader has just drawn again."""
        if self._state is not None and self._in_validation:
            set_random_state(self._state["random"], _loaders(trainer))


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


def _check_fits(name: str, then: object, now: object) -> None:
    if then != now:
        raise InvalidArgumentError(
            f"The checkpoint's table of probe differences does not fit: {name} was {then}, and in the present run it is {now}."
            " Resume with the settings that it was saved with, or from a checkpoint at which a new snapshot is due: an epoch's"
            " end, unless `every_n_epochs`, `every_n_train_steps` or `sweep=False` keeps the table beyond it."
        )


def plan_state(plan: Plan) -> dict[str, Any]:
    """A plan as plain types and tensors."""
    loaders = [[packed(batches) for batches in passes] for passes in plan.batches()]
    return {"length": plan.length, "keeps_order": plan.keeps_order, "loaders": loaders}


def resumed_plan(trainer: Trainer, state: dict[str, Any]) -> Plan:
    """The plan of :func:`plan_state`, for the loaders of the present run."""
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the training starts"
    return Plan(loader, [[Pass.of(unpacked(batches)) for batches in passes] for passes in state["loaders"]], state["length"])


def _loaders(trainer: Trainer) -> list[Any]:
    loader = compat.train_loader(trainer)
    return [] if loader is None else loader.flattened
