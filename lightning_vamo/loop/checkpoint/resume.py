"""Resume a run from a checkpoint, bit for bit as if the run had not been interrupted."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.sharding import local
from lightning_vamo.errors import InvalidArgumentError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checkpoint.fits import check_data, check_fits, check_parameters, check_snapshot
from lightning_vamo.loop.checkpoint.packing import unpacked
from lightning_vamo.loop.checkpoint.random_state import set_random_state
from lightning_vamo.loop.checkpoint.state import RankState, parameters_of, read, resumed_plan
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.plan import remaining
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler
from lightning_vamo.loop.run.parts import Cursor, SnapshotClock, Sums
from lightning_vamo.loop.run.run import Run


class Resumption:
    """Resumes a run from a checkpoint; its work ends with the first batch.

    Args:
        trainer: The trainer, with its module.
        run: The run, which has been set up.
        ranks: The states that :func:`~lightning_vamo.loop.checkpoint.state.saved` returned.
        checkpoint: The checkpoint, before Lightning's loops read it.
        name: Name of the callback, for messages.

    Raises:
        InvalidArgumentError: If the states cannot be read, or another number of processes saved them within an epoch.
    """

    def __init__(
        self, trainer: Trainer, run: Run, ranks: Sequence[dict[str, Any]], checkpoint: dict[str, Any], name: str
    ) -> None:
        states = [RankState.read(state, name) for state in ranks]
        first = states[0]
        within = first.position is not None
        if within or first.snapshot is not None:
            check_fits("the number of processes", len(states), trainer.world_size)
        # Between snapshots only the random states would be restored, and those of other processes are of no use.
        self._state = states[trainer.global_rank] if len(states) == trainer.world_size else None
        if self._state is not None and self._state.snapshot is not None and first.snapshot is not None:
            own, shared = self._state.snapshot["rows"], first.snapshot["rows"]
            # Large values that are the same on every rank are saved once.
            own |= {name: shared[name] for name, value in own.items() if value is None}
        self._name = name
        self._within = within
        self._in_validation = within and first.validating
        self._ends_batch = within and (compat.end_batch_on_resume(checkpoint) or self._in_validation)
        self._ended_epoch = not within and compat.ended_epoch(checkpoint)
        if self._state is not None:  # before the optimizers are made, and before DDP finds out which parameters to reduce
            _thaw(trainer.lightning_module, run, self._state.frozen)

    def replay(self, recorder: RecordingBatchSampler, index: int) -> None:
        """Make a loader begin with the remaining batches of its epoch.

        Args:
            recorder: The loader's recorder, from which nothing has been drawn.
            index: Position of the loader among the training loaders.
        """
        if self._state is None or self._state.position is None or self._state.plan is None:
            return
        plan, order, position = self._state.plan, self._state.cursor["order"].tolist(), self._state.position
        # After an ended epoch no batches remain, and the next epoch has to draw its own batches.
        if position < plan["length"] and index < len(plan["loaders"]):
            passes = [unpacked(batches) for batches in plan["loaders"][index]]
            recorder.replay(remaining(passes, position, None if plan["keeps_order"] else order))

    @contextmanager
    def taken_up(self, trainer: Trainer, run: Run) -> Iterator[None]:
        """Make a context that gives a run the state of the interrupted run, and lets Lightning's loops continue.

        Args:
            trainer: The trainer, about to train.
            run: The run.

        Yields:
            Nothing.

        Raises:
            InvalidArgumentError: If the snapshot of the checkpoint does not fit the present run.
        """
        if self._state is None:
            yield
            return
        _thaw(trainer.lightning_module, run, self._state.frozen)
        self._take_up(trainer, run, self._state)
        if self._within:
            compat.resume_schedulers(trainer)
        elif self._ended_epoch:
            compat.leave_ended_epoch(trainer)
        compat.set_last_reload(trainer, self._state.reloaded)
        restore = functools.partial(self._restore if self._within else self._begin_epoch, trainer)
        resumable = self._state.plan is not None
        with compat.continued(trainer, restore, within=self._within, end_batch=self._ends_batch, resumable=resumable):
            yield

    def _take_up(self, trainer: Trainer, run: Run, state: RankState) -> None:
        device = trainer.strategy.root_device

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        cursor = read(Cursor, {**state.cursor, "order": state.cursor["order"].tolist()}, self._name)
        cursor.rows = [moved(row) for row in cursor.rows]
        # Without a plan the loader begins anew, and a later plan begins with the next batch.
        cursor.first += state.position or 0 if state.plan is None else 0
        sums = read(Sums, state.sums, self._name)
        sums.place(device)
        clock = read(SnapshotClock, state.clock, self._name)
        plan = None if state.plan is None else resumed_plan(trainer, state.plan)
        if state.snapshot is not None:
            check_snapshot(trainer, run, state)
        elif self._within:
            check_data(trainer, state)
            check_parameters(trainer, state)
        run.cursor, run.sums, run.clock = cursor, sums, clock
        # The saved plan is that of the snapshot's rows; an epoch may take its batches in another order.
        run.plan = plan.in_order(cursor.order) if plan is not None and self._within else None
        run.method.gradient.load_state_dict(state.gradient)
        self._take_up_learning(trainer, run, state)
        if state.snapshot is not None:
            here = run.here(trainer, trainer.lightning_module)
            run.snapshot = run.method.control.restore(here, state.snapshot, plan)

    def _take_up_learning(self, trainer: Trainer, run: Run, state: RankState) -> None:
        settings, learning, saved = run.method.settings, run.learning, state.learning
        learning.learned_at, learning.turn_at, learning.mu = (saved[name] for name in ("learned_at", "turn_at", "mu"))
        learning.changing_data = saved["changing_data"]
        control = run.method.control
        learning.coefficient = control.coefficient_again(settings, saved["coefficient"], state.snapshot)
        same = state.snapshot is not None or state.parameters == parameters_of(trainer)
        if saved["learner"] is not None and settings.directions.learns and same:
            parameters = trainable_parameters(trainer.optimizers)
            # Between snapshots settings may change; directions that were learned with other settings are learned anew.
            with suppress(InvalidArgumentError) if state.snapshot is None else nullcontext():
                learning.take_up_learner(saved["learner"], settings.directions, parameters)

    def _restore(self, trainer: Trainer) -> None:
        assert self._state is not None
        module = trainer.lightning_module
        compat.set_log_state(trainer, module, self._state.logs, self._state.position)
        compat.set_metric_states(module, self._state.metrics)
        if self._state.gradients:
            parameters = trainable_parameters(trainer.optimizers)
            for parameter, gradient in zip(parameters, self._state.gradients, strict=True):
                if gradient is not None:
                    parameter.grad = torch.zeros_like(parameter)
                    local(parameter.grad).copy_(gradient)
        set_random_state(self._state.random, compat.train_loaders(trainer))

    def _begin_epoch(self, trainer: Trainer) -> None:
        assert self._state is not None
        compat.set_log_state(trainer, trainer.lightning_module, self._state.logs, None)
        if self._ended_epoch:
            compat.step_plateau_schedulers(trainer)
        set_random_state(self._state.random, compat.train_loaders(trainer))

    def validation_starts(self, trainer: Trainer) -> None:
        """Set the random states for an interrupted validation, which runs again: its loader has just drawn random numbers."""
        if self._state is not None and self._in_validation:
            set_random_state(self._state.random, compat.train_loaders(trainer))


def _thaw(module: LightningModule, run: Run, frozen: dict[str, list[str]]) -> None:
    """Restore ``requires_grad`` of parameters whose flag a callback, and not the module itself, had changed."""
    if run.frozen == frozen["before"]:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen["now"])
