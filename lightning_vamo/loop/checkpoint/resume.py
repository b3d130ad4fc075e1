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
from torch import Tensor

from lightning_vamo.core.control.coefficients import Regression
from lightning_vamo.core.control.mixing import coefficient_of
from lightning_vamo.core.schedules import ProbeSchedule
from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checkpoint.packing import unpacked
from lightning_vamo.loop.checkpoint.random_state import set_random_state
from lightning_vamo.loop.checkpoint.state import KEYS, check_readable, loaders_of
from lightning_vamo.loop.control.probed import resumed_snapshot
from lightning_vamo.loop.control.settings import VAMOSettings
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.plan import Plan, remaining
from lightning_vamo.loop.plan.recorder import Pass, RecordingBatchSampler
from lightning_vamo.loop.run.standing import Standing


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
        check_readable(set().union(*ranks) == KEYS)
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
        snapshot, parameters = state["snapshot"], trainable_parameters(trainer.optimizers)
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
            parameters = trainable_parameters(trainer.optimizers)
            for parameter, gradient in zip(parameters, self._state["gradients"], strict=True):
                if gradient is not None:
                    parameter.grad = torch.zeros_like(parameter)
                    local(parameter.grad).copy_(gradient)
        set_random_state(self._state["random"], loaders_of(trainer))

    def _begin_epoch(self, trainer: Trainer) -> None:
        assert self._state is not None
        compat.set_log_state(trainer, trainer.lightning_module, self._state["logs"], None)
        if self._ended_epoch:
            compat.step_plateau_schedulers(trainer)
        set_random_state(self._state["random"], loaders_of(trainer))

    def validation_starts(self, trainer: Trainer) -> None:
        """Take up the random states from within a validation, which is done anew: its loader has just drawn again."""
        if self._state is not None and self._in_validation:
            set_random_state(self._state["random"], loaders_of(trainer))


def _check_fits(name: str, then: object, now: object) -> None:
    if then != now:
        raise InvalidArgumentError(
            f"The checkpoint's table of probe differences does not fit: {name} was {then}, and in the present run it is {now}."
            " Resume with the settings that it was saved with, or from a checkpoint at which a new snapshot is due: an epoch's"
            " end, unless `every_n_epochs`, `every_n_train_steps` or `sweep=False` keeps the table beyond it."
        )


def resumed_plan(trainer: Trainer, state: dict[str, Any]) -> Plan:
    """The plan of :func:`plan_state`, for the loaders of the present run."""
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the training starts"
    return Plan(loader, [[Pass.of(unpacked(batches)) for batches in passes] for passes in state["loaders"]], state["length"])
