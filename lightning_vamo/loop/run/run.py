"""Everything that one fit owns on one rank."""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_vamo.core.small import Small, tensor_of
from lightning_vamo.loop import compat
from lightning_vamo.loop.control.base import Snapshot
from lightning_vamo.loop.control.choice import Choice
from lightning_vamo.loop.control.drawn import turn
from lightning_vamo.loop.control.here import Here
from lightning_vamo.loop.control.learning import Learning
from lightning_vamo.loop.gradient.base import Evaluated
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.ledger.ledger import Ledger
from lightning_vamo.loop.ledger.seeds import Seeds, seeded
from lightning_vamo.loop.observer import observers
from lightning_vamo.loop.plan.fingerprint import BatchWatch
from lightning_vamo.loop.plan.plan import Plan, has_plan, plan_of
from lightning_vamo.loop.run.changing import differs_anywhere, gives_other_batches
from lightning_vamo.loop.run.figures import mean_factor, removed
from lightning_vamo.loop.run.method import Method
from lightning_vamo.loop.run.parts import Cursor, SnapshotClock, Sums
from lightning_vamo.loop.step.correct import correct, withheld
from lightning_vamo.loop.step.driver import Driver
from lightning_vamo.loop.sweep.oracle import Oracle


class Run:
    """One fit, on one rank: the snapshot and all that changes from step to step.

    Args:
        method: The method to train with.
        driver: Answers the calls of the module's ``training_step``.

    Attributes:
        method: The method.
        snapshot: The snapshot that corrects the steps; None if the steps are plain.
        plan: The batches of the epoch, including those before a resume; None if they are not known in advance.
        cursor: The position of the epoch in the snapshot's batches.
        sums: Sums over the epoch's steps.
        clock: Tells when the next snapshot is due.
        learning: The state that is learned from gradients.
        choice: Chooses by measurement; None if the number of probes is fixed before training.
        resting: The choice, where all further steps of the epoch are Lightning's own; else None.
        seeds: The seeds of the run.
        ledger: The costs and the benefit of the run.
        watch: Finds batches that differ from the batches of the sweep.
        advice: The warnings of the run, each given once.
        frozen: Names of the parameters that needed no gradient when the fit was set up.
    """

    def __init__(self, method: Method, driver: Driver) -> None:
        self.method = method
        self.snapshot: Snapshot | None = None
        self.plan: Plan | None = None
        self.cursor = Cursor()
        self.sums = Sums()
        self.clock = SnapshotClock()
        self.learning = Learning()
        self.choice = Choice.of(method.settings.schedule)
        self.resting: Choice | None = None
        self.seeds = Seeds()
        self.ledger = Ledger(None if self.choice is None else self.choice.losses)
        self.watch = BatchWatch()
        self.advice = Advice(method.prefix, method.ways)
        self.frozen: list[str] = []
        self._driver = driver

    def release(self) -> None:
        """Release all objects except the ledger."""
        self.method.gradient.release()
        self.snapshot, self.plan, self.resting = None, None, None
        self.cursor, self.sums, self.clock, self.learning = Cursor(), Sums(), SnapshotClock(), Learning()

    def here(self, trainer: Trainer, module: LightningModule) -> Here:
        """The present state of the run, for a control variate."""
        settings = self.method.settings
        return Here(
            trainer=trainer,
            module=module,
            make_oracle=partial(Oracle, trainer, module, self._driver.answering, float32=settings.sweep_precision is not None),
            settings=settings,
            learning=self.learning,
            choice=self.choice,
            seeds=self.seeds,
            totals=self.ledger.totals,
            advice=self.advice,
            watch=self.watch,
            catch_up=self._tell,
            plan=self.plan,
        )

    # ---- epochs and snapshots

    def begin_epoch(self, trainer: Trainer) -> None:
        """Decide whether the epoch takes a new snapshot or uses the last snapshot again."""
        self.ledger.begin_epoch(trainer.current_epoch)
        self.cursor.begin_epoch()
        self.watch.looks = True  # at the first batch, before which a sweep may be due
        self.sums.unused, self.plan, self.resting = 0, None, None
        if compat.skips_backward(trainer):
            return
        control, epoch, snapshot = self.method.control, trainer.current_epoch, self.snapshot
        stale = snapshot is not None and not snapshot.belongs_to(compat.train_loader(trainer))
        learns = snapshot is None and (self.learning.learner or (self.choice and self.method.settings.directions.learns))
        self.clock.due |= stale or control.begins(epoch) or bool(learns and control.every_n_train_steps is None)
        if stale:
            control.warn_of_reload(self.advice)  # it may hold other data, for which the rows are wrong
        if stale or (self.clock.due and control.replaces(epoch)):
            self.snapshot = None
        if self.snapshot is not None and self.choice is not None and self.choice.stage == "look":
            # Decided before the first batch is drawn, as the batches are those of the rows that a look has filled, or others.
            self._take_snapshot(trainer, trainer.lightning_module)
            self.clock.due = self.snapshot is not None
        if self.snapshot is not None:
            self.cursor.reorder(self.snapshot.begin_epoch(seeded(self.seeds.of(f"order of epoch {epoch}"))))

    def before_batch(self, trainer: Trainer, module: LightningModule, batch_idx: int) -> Snapshot | None:
        """Take a snapshot if it is due, and compare the batch with the batch that its row was measured on.

        Args:
            trainer: The trainer.
            module: Its module.
            batch_idx: Lightning's index of the batch that has been drawn.

        Returns:
            The snapshot, if one has been taken.
        """
        if compat.skips_backward(trainer):
            return None
        clock, every, snapshot = self.clock, self.method.control.every_n_train_steps, self.snapshot
        if batch_idx - self.cursor.first >= trainer.num_training_batches:
            # This batch has no row: after a BatchSizeFinder, Lightning goes on counting batches from the last epoch's number.
            self.snapshot, clock.due, self.watch.differs = None, True, False
            return None
        # A tuner that runs at the epoch's start may have made a new loader after the epoch has begun.
        if snapshot is not None and not (
            snapshot.fits(trainer.accumulate_grad_batches) and snapshot.belongs_to(compat.train_loader(trainer))
        ):
            self.snapshot, clock.due = None, True
        if self.cursor.begins:
            self.cursor.begins = False
            if self.method.records and has_plan(trainer):
                self.plan = plan_of(trainer)  # even without a sweep, so that saving a checkpoint draws no batches
        if batch_idx % trainer.accumulate_grad_batches == 0:
            learned_at, turn_at, step = self.learning.learned_at, self.learning.turn_at, trainer.global_step
            clock.due |= every is not None and step - clock.step >= every
            clock.due |= learned_at is not None and step >= learned_at
            if turn_at is not None and step >= turn_at:
                turn(self.here(trainer, module))
        if taken := clock.due:
            clock.step = trainer.global_step
            self._take_snapshot(trainer, module)
            clock.due = False
        self._check_batch(trainer, batch_idx)
        if self.choice is not None:
            self.choice.step_starts(trainer, self.learning.learner)
            timed = (every, self.learning.learned_at, self.learning.turn_at) != (None, None, None)
            rests = self.choice.stage == "rest" and not (self.snapshot or timed or observers(trainer))
            self.resting = self.choice if rests else None
        return self.snapshot if taken else None

    def drives(self, trainer: Trainer) -> bool:
        """Whether the coming batch is trained on by a step of the method; if not, by Lightning's own step.

        Args:
            trainer: The trainer.

        Returns:
            The same for all batches of an optimizer step.
        """
        return not self.resting and (self.choice is None or self.choice.sees(trainer.global_step) or bool(observers(trainer)))

    def _check_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Compare the batch with the batch that the sweep saw in its place, and warn if they differ."""
        snapshot = self.snapshot
        row = None if snapshot is None else self.cursor.row(batch_idx)
        expected = None if snapshot is None or row is None else snapshot.fingerprint(row)
        self.watch.check(expected)
        if snapshot is not None and self.method.leaves_out_together:
            self.watch.differs = differs_anywhere(trainer, self.watch.differs)
        if self.watch.differs:
            left_out = self.method.leaves_out_together or trainer.world_size == 1
            left_out |= self._withholds and compat.averages_gradients(trainer)
            self.sums.unused += left_out
            self.advice.on_other_batch(left_out)

    def _take_snapshot(self, trainer: Trainer, module: LightningModule) -> None:
        before, self.snapshot = self.snapshot, None
        self.snapshot = snapshot = self.method.control.take(self.here(trainer, module), before)
        if snapshot is not None:
            if not isinstance(self.sums.factors, float) and len(self.sums.factors) != snapshot.count:
                self.sums.forget_factors()  # factors of other directions cannot be added to those of the new directions
            if before is None or snapshot.plan is None or snapshot.plan is not before.plan:
                self.cursor.follow(snapshot.plan)
        for observer in observers(trainer):
            observer.on_snapshot(trainer, module, snapshot)

    def end_epoch(self, trainer: Trainer) -> dict[str, float]:
        """Close the epoch, and drop the snapshot if no later epoch uses it.

        Args:
            trainer: The trainer.

        Returns:
            The epoch's figures, to log.
        """
        self.ledger.stop()
        totals, snapshot = self.ledger.totals, self.snapshot
        figures: dict[str, float] = {} if snapshot is None else dict(snapshot.logs)
        adapts = self.learning.coefficient is not None
        figures |= mean_factor(self.sums, snapshot) if adapts else {}
        applied = snapshot is not None and (self.sums.steps > 0 or not adapts)
        self._tell()
        figures |= {} if self.choice is None else self.choice.figures
        figures |= removed(self.sums, snapshot, totals)
        if self.method.control.made_of != "gradients":
            figures["probes"] = snapshot.count if snapshot is not None and applied else 0
        figures |= self.method.gradient.end_epoch()
        figures |= {"forward_evaluations": totals.forward_evaluations, "backward_evaluations": totals.backward_evaluations}
        row_seconds = self.ledger.end_rows()
        if snapshot is not None:
            figures["rows_unused"] = self.sums.unused
            if snapshot.unused is not None:
                figures |= {"rows_unused": snapshot.unused, "row_seconds": row_seconds}
        totals.rows_unused += self.sums.unused
        if self.method.control.watches and gives_other_batches(trainer, snapshot, self.sums.unused):
            self.learning.changing_data = True
            self.method.control.warn_of_changing_data(self.advice)
        if snapshot is None or not self.method.control.keeps(snapshot, trainer.current_epoch):
            self.snapshot = None
        return figures

    def _tell(self) -> None:
        """Report the steps since the last report to the choice, and begin the sums of their factors anew."""
        if self.choice is not None:
            factors = self.sums.factors if isinstance(self.sums.factors, float) else tensor_of(self.sums.factors)
            self.choice.used(factors, self.sums.steps, *self.ledger.tell_rows())
        self.sums.forget_factors()

    # ---- steps

    def before_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Prepare the next batch's row, if each step computes its own row."""
        snapshot = self.snapshot
        if snapshot is not None and snapshot.plan is None and not compat.skips_backward(trainer):
            with self.ledger.row_time.running(module.device):
                self.ledger.add_row(snapshot.before_step(self.here(trainer, module), batch))

    @property
    def _withholds(self) -> bool:
        return self.method.gradient.uses_backward and self.snapshot is not None and self.snapshot.withholds

    def around_backward(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Leave this rank's part of the row out if it belongs to another batch and several ranks must correct alike."""
        if self.snapshot is None or not self.watch.differs or not compat.averages_gradients(trainer) or not self._withholds:
            return nullcontext()
        self.cursor.withheld = True
        row = self.snapshot.key(self.cursor.row(trainer.fit_loop.batch_idx))
        return withheld(trainer, self.snapshot, row, self.cursor.share(trainer))

    def after_gradient(
        self, trainer: Trainer, module: LightningModule, evaluated: Evaluated, *, first: bool, last: bool
    ) -> None:
        """Correct the gradient, once all batches of the step are in it."""
        start = time.perf_counter()
        self.ledger.add_batch(evaluated.outputs, evaluated.forwards, evaluated.backwards, not evaluated.skipped)
        snapshot, watching = self.snapshot, observers(trainer)
        if first:
            self.cursor.rows = []
        if last and (self.choice is None or self.choice.sees(trainer.global_step)):
            self.learning.observe(trainer)
        left_out, row = self.watch.differs and (trainer.world_size == 1 or self.method.leaves_out_together), None
        if snapshot is not None and not evaluated.skipped and not left_out:
            row = snapshot.key(self.cursor.row(trainer.fit_loop.batch_idx))
            self.cursor.rows.append(row)
        for observer in watching:
            observer.on_gradient(trainer, module, snapshot, row)
        if last:
            moments = None if snapshot is None else self._correct(trainer, snapshot)
            for observer in watching:
                observer.on_correction(trainer, module, snapshot, None if moments is None else tensor_of(moments))
        if self.choice is not None and not watching and module.device.type == "cpu":  # a GPU has not finished yet
            self.choice.times.spend(time.perf_counter() - start)

    def _correct(self, trainer: Trainer, snapshot: Snapshot) -> Small | None:
        cursor = self.cursor
        moments = correct(trainer, snapshot, cursor.rows, cursor.share(trainer), self.learning.learner)
        if moments is not None:
            # A part of the row was added to this rank's gradient and taken out again; that removed no noise.
            moments = moments * 0.0 if cursor.withheld else moments
            self.sums.add(snapshot.factors, moments)
            self.ledger.totals.steps += 1
        cursor.rows, cursor.withheld = [], False
        return moments
