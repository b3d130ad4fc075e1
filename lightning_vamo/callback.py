"""The callback that trains with VAMO: when to take a snapshot, how many probes, what to log, what to checkpoint."""

import copy
import functools
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_vamo.core.directions import Directions, GradientSubspaceDirections, ProbeDirections
from lightning_vamo.core.directions.learner import Learner
from lightning_vamo.core.mixing import Alpha, check_alpha, coefficient_of
from lightning_vamo.core.probes import Difference, check_difference, check_mu
from lightning_vamo.core.schedules import ConstantProbes, EfficientProbes, ProbeSchedule, as_schedule, check_probes
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.loop import compat, support
from lightning_vamo.loop.advice import Advice
from lightning_vamo.loop.carrying import check_carry, fits, next_epoch, same_tensors, swept_rows, unswept_rows
from lightning_vamo.loop.choice import ProbeChoice
from lightning_vamo.loop.driver import GradientCallback
from lightning_vamo.loop.fingerprint import BatchWatch
from lightning_vamo.loop.plan import has_plan, plan_of
from lightning_vamo.loop.precision import check_float32, check_sweep_precision
from lightning_vamo.loop.recompute import Control, check_control, snapshot_steps
from lightning_vamo.loop.recording import RecordingBatchSampler, recording
from lightning_vamo.loop.resume import Resumption, check_readable, plan_within, saved
from lightning_vamo.loop.second import Swept, second_reading
from lightning_vamo.loop.snapshot import Taken, seeded, take_snapshot
from lightning_vamo.loop.standing import Standing
from lightning_vamo.loop.stopwatch import Stopwatch
from lightning_vamo.loop.warmup import observe, warm_up
from lightning_vamo.mixin import VAMOMixin
from lightning_vamo.report import Totals, VAMOReport


class VAMOCallback(GradientCallback):
    r"""Trains a module that has the :class:`~lightning_vamo.VAMOMixin` with VAMO.

    At an epoch's first batch it takes a snapshot :math:`\tilde x` of the weights, turns to ``q`` probe directions, and sweeps
    the epoch's batches without gradients for their probe differences. Each step then corrects its gradient,

    .. math:: v_k = \nabla f_{B_k}(x_k) - \alpha\,\frac{d}{q} \sum_j (\delta_{B_k,j} - \bar\delta_j)\, u_j,

    and the optimizer that the module configures, whichever it is, steps with :math:`v_k`. By default the directions are those
    of the gradient noise, learned in training, and a regression scales each correction. The method of the paper is
    ``VAMOCallback(directions=SphereDirections(), alpha="theory")``.

    Logged at the end of each epoch under ``vamo/``: ``probes``; ``alpha``, the effective coefficient :math:`\alpha d/q`;
    ``mu``; ``snapshot_loss``, the training loss at the snapshot, exact where the loss is a mean over samples;
    ``variance_removed``, the share of the gradient's second moment that the corrections removed; ``probe_snr``, how far the
    probe differences stand out of their own error; ``directions_dropped``, for losses that were not finite along them;
    ``rows_unused``, batches that were not those that the sweep saw; ``forward_evaluations`` and
    ``backward_evaluations`` of a batch so far; ``sweep_seconds``, and ``row_seconds`` where rows are recomputed.

    Args:
        probes: ``q``, the number of probes, or a schedule of it, a :class:`~lightning_vamo.core.schedules.ProbeSchedule`. 0 is
            plain first-order training.
        directions: The family of probe directions; by default
            :class:`~lightning_vamo.core.directions.GradientSubspaceDirections`, learned from the gradients of training. The
            paper's are :class:`~lightning_vamo.core.directions.SphereDirections`.
        mu: Smoothing radius for directions of unit norm, or ``"auto"``: see :func:`~lightning_vamo.core.probes.auto_mu`.
        alpha: The mixing coefficient :math:`\alpha`, or ``"theory"``: the paper's, :math:`q/d`. ``"adaptive"``, the default,
            multiplies the theory's by what a regression of gradients on rows finds, direction by direction, and
            ``"linear-decay"`` lets it fall to 0 over the batches of a snapshot: see :mod:`lightning_vamo.core.adaptive`.
        difference: ``"forward"``, ``1 + q`` forward passes per batch and sweep, or ``"central"``, ``1 + 2q``.
        sweep_precision: ``"32-true"`` sweeps in float32 where the Trainer trains in mixed precision; by default the sweep runs
            in the Trainer's precision.
        control: How a step gets its row. ``"replay"`` has the epoch train on the very batches that the sweep saw.
            ``"recompute"`` keeps the snapshot's weights and evaluates the ``1 + q`` losses of each step's own batch, for data
            that does not come twice. ``"auto"`` is replay where the batches of an epoch can be told before it, and else
            recompute.
        every_n_epochs: Epochs from one snapshot to the next. In between, the batches of a replayed snapshot keep their
            composition, and their order is reshuffled unless the data is read in sequence.
        every_n_train_steps: Optimizer steps from one snapshot to the next, the paper's ``m``, in place of epochs; rows are then
            recomputed.
        carry: Whether each step refreshes the row that it has used, for the next epoch to use: see
            :class:`~lightning_vamo.core.carried.CarriedRows`. Without it the rows of a snapshot stay as they were measured.
        sweep: With ``carry``, False leaves sweeps out: an epoch of training fills the table, and the batches keep their
            composition for good. Directions that learn turn every ``every_n_epochs``, and the rows with them.
        seed: Seed of the directions; by default it follows from the global seed. The global generator is never touched.

    Raises:
        InvalidArgumentError: If an argument has a value that is not allowed.

    References:
        Chen & Ma, "VAMO", arXiv:2505.13954, Algorithm 1.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(max_epochs=10, callbacks=[VAMOCallback(probes=4)], logger=False)
    """

    def __init__(
        self,
        probes: int | ProbeSchedule = 1,
        directions: Directions | None = None,
        mu: float | Literal["auto"] = "auto",
        alpha: float | Literal["theory", "adaptive", "linear-decay"] = "adaptive",
        difference: Literal["forward", "central"] = "forward",
        control: Literal["auto", "replay", "recompute"] = "auto",
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        seed: int | None = None,
        sweep_precision: Literal["32-true"] | None = None,
        carry: bool = False,
        sweep: bool = True,
    ) -> None:
        super().__init__()
        self.schedule = as_schedule(probes)
        check_mu(mu)
        check_alpha(alpha)
        check_difference(difference)
        check_sweep_precision(sweep_precision)
        if directions is not None and not isinstance(directions, Directions):
            raise InvalidArgumentError(
                f"`directions` must be a family such as GradientSubspaceDirections(), got {directions!r}."
            )
        if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise InvalidArgumentError(f"`every_n_epochs` must be a whole number >= 1, got {every_n_epochs!r}.")
        check_control(control, every_n_epochs, every_n_train_steps)
        check_carry(carry, sweep, every_n_epochs, control if every_n_train_steps is None else "recompute")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise InvalidArgumentError(f"`seed` must be a whole number or None, got {seed!r}.")
        self.directions = GradientSubspaceDirections() if directions is None else directions
        self.mu = mu
        self.alpha: Alpha = alpha
        self.difference: Difference = difference
        # Snapshots that do not come at an epoch's first batch leave no epoch to replay.
        self.control: Control = control if every_n_train_steps is None else "recompute"
        if carry:
            self.control = "replay"
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.seed = seed
        self.sweep_precision = sweep_precision
        self.carry = carry
        self.sweep = sweep
        self.probes_in_float32 = sweep_precision is not None
        if isinstance(self.schedule, EfficientProbes) and alpha != "adaptive":
            raise InvalidArgumentError(f'`alpha` must be "adaptive", whose factors EfficientProbes goes by, got {alpha!r}.')
        self._choice = self._begin_choice()
        self._advice = Advice()
        self._watch = BatchWatch()
        self._row_time = Stopwatch()
        self._attached = ExitStack()
        self._totals = Totals()
        self._standing = Standing()
        self._epoch_began: float | None = None
        self._trainer: Trainer | None = None
        self._resumption: Resumption | None = None

    @property
    def report(self) -> VAMOReport:
        """What the probes have cost and removed so far; printed, it reads as a few lines of text."""
        totals = copy.copy(self._totals)
        totals.row_seconds += self._row_time.read()
        # Within an epoch, and after an exception, these are the figures of this rank's shards alone: to add those of the others
        # takes the others.
        if self._standing.moments is not None:
            totals.add_moments(*self._standing.moments.tolist())
        return totals.report()

    @property
    def _never_probes(self) -> bool:
        return isinstance(self.schedule, ConstantProbes) and self.schedule.n == 0

    # ---- attach to a Trainer, and detach

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what VAMO cannot train, and let the training loaders record their batches."""
        if stage != "fit":
            return
        callbacks = [callback for callback in trainer.callbacks if isinstance(callback, GradientCallback)]  # type: ignore[attr-defined]
        if len(callbacks) > 1:
            raise UnsupportedError(
                f"The Trainer has {len(callbacks)} callbacks that change gradients,"
                f" {', '.join(type(callback).__name__ for callback in callbacks)}: keep one."
            )
        support.check_strategy(trainer.strategy)
        support.check_module(pl_module, VAMOMixin)
        self._totals = Totals()
        self._row_time = Stopwatch()
        self._standing = Standing()
        self._choice = self._begin_choice()
        self._resumption = None
        self._advice = Advice()
        self._attached.enter_context(support.one_optimizer(trainer.strategy))
        if not self._never_probes:
            required = self.control == "replay"
            self._attached.enter_context(recording(trainer, self._replay, required=required))
            if not self.carry:  # else a row belongs to samples, however they are augmented: the last use was of others too
                self._attached.enter_context(self._watch.watching(trainer, lambda: self.probing))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers, and numbers of probes, that do not fit."""
        support.check_optimizer(trainer.optimizers)
        most = self._most(trainer.current_epoch)
        if most:
            support.check_probes_fit(trainer.optimizers, self.directions, most, self.alpha)
        if self.sweep_precision is not None:
            check_float32(trainer, support.trainable_parameters(trainer.optimizers))
        self._totals.seed = self._totals.seed if self.seed is None else self.seed
        if self._totals.seed is None:
            self._totals.seed = trainer.strategy.broadcast(torch.initial_seed())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the training steps. Not earlier: the LR finder trains, plainly, before this hook."""
        self._trainer = trainer
        # From a checkpoint without a plan, such as plain Lightning's, the plan begins with the batch that comes next.
        self._standing.first = compat.position(trainer) or 0
        if self._resumption is not None:
            schedule = self.schedule if self._choice is None else self._choice.schedule
            self._standing = self._attached.enter_context(
                self._resumption.taken_up(trainer, self.directions, schedule, self.alpha, self.control)
            )
        stepping = functools.partial(self.stepping, trainer, pl_module)
        self._attached.enter_context(compat.manual_steps(trainer, pl_module, stepping))
        self._epoch_began = time.perf_counter()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give everything back as it was."""
        self._detach()
        self._trainer = None
        self._standing = Standing()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give everything back as it was, but for what a checkpoint that is saved next needs."""
        with suppress(UnsupportedError):  # then no checkpoint can hold the epoch, and says so
            self._standing.plan = plan_within(trainer, self._standing)
        self._detach()

    def _detach(self) -> None:
        self._attached.close()
        self._count_seconds()

    def _count_seconds(self) -> None:
        if self._epoch_began is not None:
            self._totals.training_seconds += time.perf_counter() - self._epoch_began
            self._epoch_began = None

    def _count_moments(self) -> dict[str, float]:
        """Add what the epoch's corrections removed to the totals, and return what of it is to be logged."""
        moments, self._standing.moments = self._standing.moments, None
        if moments is None:
            return {}
        before, removed = moments.tolist()
        self._totals.add_moments(before, removed)
        return {"vamo/variance_removed": removed / before if before else 0.0}

    def _count_factors(self, trainer: Trainer) -> dict[str, float]:
        """The mean effective coefficient of the epoch's steps, where it changes from step to step."""
        standing = self._standing
        steps, factors = standing.steps, standing.factors
        standing.steps, standing.factors = 0, 0.0
        if self._choice is not None:
            self._choice.epoch_ends(trainer, factors, steps, self._row_time.read())
        if not steps or standing.coefficient is None:
            return {}
        return {"vamo/alpha": float(torch.as_tensor(factors).mean()) / steps}

    # ---- epochs and snapshots

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the steps, and go on with a validation that an exception ended."""
        if self._choice is not None:
            self._choice.clock.stop(trainer.strategy.root_device)
        if self._resumption is not None:
            self._resumption.validation_starts(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this epoch takes a snapshot, or goes on with the batches of the last one."""
        self._epoch_began = time.perf_counter()
        self._standing.first = self._standing.unused = 0
        self._standing.plan = None
        if compat.skips_backward(trainer):
            return
        standing = self._standing
        # A reloaded loader may hold other data, to which the rows do not belong.
        stale = standing.taken is not None and not standing.taken.belongs_to(compat.train_loader(trainer))
        learning = standing.learner is not None and standing.taken is None
        standing.due |= stale
        if self.every_n_train_steps is None:
            standing.due |= learning or trainer.current_epoch % self.every_n_epochs == 0
        if stale or (standing.due and self.sweep):
            standing.taken = None
        if standing.taken is not None and standing.taken.plan is not None:
            standing.order = next_epoch(
                standing.taken, standing.taken.plan, seeded(self._seed(f"order of epoch {trainer.current_epoch}"))
            )

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the snapshot, if one is due.

        The epoch's first batch has been drawn by now, so the plan exists, and every hook of the epoch's start has run.
        """
        self._resumption = None
        standing = self._standing
        if compat.skips_backward(trainer):
            return
        if standing.taken is not None and not fits(trainer, standing.taken):
            standing.taken, standing.due = None, True
        if self.every_n_train_steps is not None and batch_idx % trainer.accumulate_grad_batches == 0:
            standing.due |= trainer.global_step - standing.step >= self.every_n_train_steps
        if standing.due:
            if self._choice is not None:
                self._choice.clock.stop(trainer.strategy.root_device)
            standing.step = trainer.global_step
            self._take_snapshot(trainer, pl_module, batch_idx)
            standing.due = False
        if self._is_another(batch_idx):
            left_out = trainer.world_size == 1 or compat.averages_gradients(trainer)
            standing.unused += left_out
            self._advice.on_other_batch(left_out)
        if self._choice is not None:
            self._choice.clock.batch_starts()

    def _is_another(self, batch_idx: int) -> bool:
        """Whether the batch is another one than its row was measured on."""
        taken = self._standing.taken
        replayed = None if taken is None or taken.recomputation is not None else taken.sweep
        return self._watch.check(None if replayed is None else replayed.fingerprints[self._standing.row(batch_idx)])

    def _take_snapshot(self, trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
        standing, seed = self._standing, self._seed(f"snapshot {self._totals.snapshots}")
        before, standing.taken = standing.taken, None
        plan = functools.cache(functools.partial(self._to_sweep, trainer))  # drawn when it is needed, and once
        drawn = self._draw(trainer, module, seed, batch_idx, plan, before)
        if drawn is None:
            return
        standing.coefficient = coefficient_of(self.alpha, drawn.count, standing.coefficient)
        if isinstance(standing.factors, Tensor) and len(standing.factors) != drawn.count:
            # Within an epoch: those of other directions cannot be added up with these.
            standing.steps, standing.factors = 0, 0.0
        if self.sweep:
            taken = self._swept(trainer, module, drawn, seed, plan())
        else:
            taken = unswept_rows(trainer, drawn, seed, before, self.alpha, standing.coefficient)
        standing.taken = swept_rows(trainer, taken) if self.carry and self.sweep else taken
        if before is None or taken.plan is None or taken.plan is not before.plan:
            standing.order = [] if taken.plan is None else list(range(taken.plan.length))

    def _swept(self, trainer: Trainer, module: LightningModule, drawn: ProbeDirections, seed: int, plan: Swept | None) -> Taken:
        recompute, every = self._recomputes(trainer), (self.every_n_epochs, self.every_n_train_steps)
        taken = take_snapshot(
            trainer,
            module,
            self,
            drawn,
            seed,
            mu=self.mu,
            steep=self.directions.learns,
            alpha=self.alpha,
            coefficient=self._standing.coefficient,
            difference=self.difference,
            sweep_precision=self.sweep_precision,
            plan=plan,
            recompute=recompute,
            period=snapshot_steps(trainer, *every, self.alpha) if recompute else None,
        )
        self._totals.add_snapshot(taken.sweep)
        if taken.sweep is not None:
            self._advice.on_sweep(trainer, taken.sweep, taken.logs["vamo/mu"], self.sweep_precision)
            if self._choice is not None:
                self._choice.swept(taken.sweep)
        return taken

    def _recomputes(self, trainer: Trainer) -> bool:
        return self.control == "recompute" or (self.control == "auto" and not has_plan(trainer))

    def _to_sweep(self, trainer: Trainer) -> Swept | None:
        """The epoch's plan of batches, or another reading of the data, if there can be one."""
        if not self._recomputes(trainer):
            return plan_of(trainer)
        # Rows are recomputed in any part of an epoch, of which the loaders may have been given a part.
        plan = self._standing.plan or (plan_of(trainer) if has_plan(trainer) else None)
        return plan or second_reading(trainer)

    def _draw(
        self,
        trainer: Trainer,
        module: LightningModule,
        seed: int,
        batch_idx: int,
        plan: Callable[[], Swept | None],
        before: Taken | None,
    ) -> ProbeDirections | None:
        """The directions of a snapshot; None if there is to be none."""
        probes = self._most(trainer.current_epoch)
        if probes == 0:
            return None
        compat.drop_gradients(trainer, module, batch_idx)
        if self.directions.learns and not self._learned(trainer, module, probes, plan):
            return None
        parameters, learner = support.trainable_parameters(trainer.optimizers), self._standing.learner
        if learner is not None:
            learner.directions(probes, seeded(seed))
        if self._choice is not None:
            dimension = sum(parameter.numel() for parameter in parameters)
            decision = self._choice.decide(trainer, learner, dimension, self.difference, self._sweeps(trainer, plan))
            probes = decision.probes
            if decision.afresh:
                self._standing.coefficient = None
        if probes == 0:
            return None
        if learner is not None:
            return learner.leading(probes)
        last = None if before is None or self.sweep else before.correction
        if last is not None and last.directions.count == probes and same_tensors(last.parameters, parameters):
            return last.directions  # other random ones would hold next to nothing of the rows, and no more of the noise
        return self.directions.draw(parameters, probes, seeded(seed))

    def _sweeps(self, trainer: Trainer, plan: Callable[[], Swept | None]) -> float:
        """How often a batch is probed per epoch, on average: in a sweep, and in its row where rows are recomputed."""
        if not self.sweep:
            return 0.0
        if not self._recomputes(trainer):
            return 1 / self.every_n_epochs
        if plan() is None:
            return 1.0
        steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        return 1 + (1 / self.every_n_epochs if self.every_n_train_steps is None else steps / self.every_n_train_steps)

    def _learned(self, trainer: Trainer, module: LightningModule, probes: int, plan: Callable[[], Swept | None]) -> bool:
        """Whether directions have been learned; before a learner's first snapshot, batches that take no step may help."""
        standing, parameters = self._standing, support.trainable_parameters(trainer.optimizers)
        # Other parameters, since some were frozen or thawed, span another space.
        if standing.learner is None or not same_tensors(parameters, standing.parameters):
            standing.parameters = parameters
            standing.learner = self.directions.learner(standing.parameters, probes, seeded(self._seed("learner")))
            if self.directions.warmup_batches:
                self._warm_up(trainer, module, standing.learner, probes, plan())
        return standing.learner.ready

    def _begin_choice(self) -> ProbeChoice | None:
        # A copy, which takes what is measured in one fit: the next one begins anew.
        return ProbeChoice(copy.copy(self.schedule)) if isinstance(self.schedule, EfficientProbes) else None

    def _warm_up(self, trainer: Trainer, module: LightningModule, learner: Learner, probes: int, plan: Swept | None) -> None:
        if plan is None:  # there are no batches to look at before
            return
        turn = functools.partial(learner.directions, probes, seeded(self._seed("second pass of the warm-up")))
        count = max(min(self.directions.warmup_batches, plan.length), probes + 1)  # fewer cannot tell so many directions apart
        start = time.perf_counter()
        with self._watch.looking_away():
            seen = warm_up(trainer, module, plan, learner, self._standing.parameters, count, turn)
        self._totals.add_warmup(seen, time.perf_counter() - start)
        if not learner.ready:
            self._advice.on_short_warmup(trainer, probes, seen)

    def _most(self, epoch: int) -> int:
        """The number of probes of an epoch; the largest, where the number is chosen by measurement."""
        if isinstance(self.schedule, EfficientProbes):
            return self.schedule.maximum
        return check_probes(f"{type(self.schedule).__name__}.probes_at({epoch})", self.schedule.probes_at(epoch))

    def _seed(self, purpose: str) -> int:
        """A seed that depends on nothing but the run's and what it is for: the same on every rank, and after a resume."""
        return random.Random(f"{self._totals.seed}: {purpose}").getrandbits(63)

    # ---- steps

    @override
    def before_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Recompute the row of the batch, where the snapshot's weights have been kept for that."""
        taken = self._standing.taken
        if taken is not None and taken.recomputation is not None and not compat.skips_backward(trainer):
            with self._row_time.running(module.device):
                self._totals.forward_evaluations += taken.recomputation.evaluate(trainer, module, self, batch)

    @override
    def around_backward(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Where several ranks have to correct alike, keep this rank's part of the row out if it is another batch's."""
        standing = self._standing
        if standing.taken is None or not self._watch.differs or not compat.averages_gradients(trainer):
            return nullcontext()
        standing.withheld = True
        row, accumulated = standing.row(trainer.fit_loop.batch_idx), trainer.accumulate_grad_batches
        return standing.taken.correction.withheld(row, accumulated, compat.grad_scale(trainer), self._progress(trainer))

    def _progress(self, trainer: Trainer) -> float:
        """Share of the epoch's batches before the step: the same for all whose gradients accumulate in it."""
        batch_idx = trainer.fit_loop.batch_idx
        return self._standing.progress(batch_idx - batch_idx % trainer.accumulate_grad_batches)

    @override
    def after_backward(self, trainer: Trainer, module: LightningModule, *, first: bool, last: bool, skipped: bool) -> None:
        """Correct the gradient, once all batches of the step are in it."""
        self._totals.forward_evaluations += 1
        self._totals.backward_evaluations += not skipped
        standing = self._standing
        if first:
            standing.rows = []
        if last and standing.learner is not None:
            observe(trainer, standing.learner, standing.parameters)
        if standing.taken is None:
            return
        if not skipped and not (self._watch.differs and trainer.world_size == 1):
            standing.rows.append(standing.row(trainer.fit_loop.batch_idx))
        if last:
            correction, recomputation = standing.taken.correction, standing.taken.recomputation
            if recomputation is not None:
                standing.rows = recomputation.averaged(trainer, standing.rows)
            scale, accumulated = compat.grad_scale(trainer), trainer.accumulate_grad_batches
            moments = correction.apply(standing.rows, accumulated, scale, self._progress(trainer))
            if moments is not None:
                self._totals.steps += 1
                standing.steps += 1
                standing.factors = standing.factors + correction.factors
                # What was added to this rank's gradient only to be taken out again is nothing that was removed.
                moments = moments * (not standing.withheld)
                standing.moments = moments if standing.moments is None else standing.moments + moments
            standing.rows, standing.withheld = [], False

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's figures."""
        self._count_seconds()
        taken, moments = self._standing.taken, self._standing.moments
        if taken is not None and moments is not None:
            self._standing.moments = taken.correction.total(moments)
        logs = {
            **({} if taken is None else taken.logs),
            **self._count_factors(trainer),
            **({} if self._choice is None else self._choice.figures),
            **self._count_moments(),
            "vamo/probes": 0 if taken is None else taken.correction.directions.count,
            "vamo/forward_evaluations": self._totals.forward_evaluations,
            "vamo/backward_evaluations": self._totals.backward_evaluations,
            **({} if taken is None else {"vamo/rows_unused": self._standing.unused}),
            **self._count_rows(),
        }
        pl_module.log_dict({name: float(value) for name, value in logs.items()}, sync_dist=True)
        keeps = not self.sweep or self.every_n_train_steps is not None
        if not keeps and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._standing.taken = None

    def _count_rows(self) -> dict[str, float]:
        """Add the time of the epoch's rows to the totals, and return what of them is to be logged."""
        seconds, self._row_time = self._row_time.read(), Stopwatch()
        self._totals.row_seconds += seconds
        recomputation = None if self._standing.taken is None else self._standing.taken.recomputation
        return {} if recomputation is None else {"vamo/rows_unused": recomputation.control.unused, "vamo/row_seconds": seconds}

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        """Totals, the seed, and where each rank stands, as plain types and tensors; to be called on all ranks together."""
        ranks = []
        # Before and after the training, and where nothing is ever probed, a checkpoint is plain Lightning's.
        if self._trainer is not None and not self._never_probes:
            ranks = saved(self._trainer, self._standing, self.directions)
        choice = None if self._choice is None else self._choice.state_dict()
        return {"totals": self._totals.state_dict(), "choice": choice, "ranks": ranks}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Prepare to go on where the run was, before Lightning's loops read the checkpoint."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if trainer.state.fn == "fit" and state.get("ranks") and not self._never_probes:
            self._resumption = Resumption(trainer, state["ranks"], checkpoint)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, and drawing directions, from a checkpoint."""
        check_readable(
            state_dict.keys() == {"totals", "choice", "ranks"} and state_dict["totals"].keys() == asdict(Totals()).keys()
        )
        self._totals.load_state_dict(state_dict["totals"])
        if self._choice is not None and state_dict["choice"] is not None:
            self._choice.load_state_dict(state_dict["choice"])

    def _replay(self, recorder: RecordingBatchSampler, index: int) -> None:
        """Let a loader that has just been set up begin with the batches that a checkpoint says are left."""
        if self._resumption is not None:
            self._resumption.replay(recorder, index)
