"""The callback that trains with VAMO: when to take a snapshot, what to log, what to checkpoint."""

import functools
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict
from operator import attrgetter
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_vamo.core.control.mixing import Alpha
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.core.schedules import ProbeSchedule, as_schedule
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import checks, compat
from lightning_vamo.loop.checkpoint.resume import Resumption
from lightning_vamo.loop.checkpoint.state import check_readable, plan_within, saved
from lightning_vamo.loop.control.carried import fits, next_epoch
from lightning_vamo.loop.control.due import DueSnapshot
from lightning_vamo.loop.control.settings import Control, VAMOSettings
from lightning_vamo.loop.control.warmup import observe
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.observer import observers, probing
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.record import recording
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler
from lightning_vamo.loop.run.run import Run
from lightning_vamo.loop.run.standing import Standing
from lightning_vamo.loop.step.correct import correct, withheld
from lightning_vamo.loop.step.driver import GradientCallback
from lightning_vamo.loop.sweep.precision import SweepPrecision, check_float32
from lightning_vamo.mixin import VAMOMixin
from lightning_vamo.report import VAMOReport


def _setting(name: str) -> Any:
    """A setting, to be read: it has been checked together with the others, and a fit may have begun."""
    return property(attrgetter(f"settings.{name}"))


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
    ``rows_unused``, batches that were not those that the sweep saw, or recomputed rows that were not finite;
    ``forward_evaluations`` and ``backward_evaluations`` of a batch so far; ``sweep_seconds``, and ``row_seconds`` where rows
    are recomputed.

    Args:
        probes: ``q``, the number of probes, or a schedule of it, a :class:`~lightning_vamo.core.schedules.ProbeSchedule`. 0 is
            plain first-order training.
        directions: The family of probe directions; by default
            :class:`~lightning_vamo.core.directions.GradientSubspaceDirections`, learned from the gradients of training. The
            paper's are :class:`~lightning_vamo.core.directions.SphereDirections`.
        mu: Smoothing radius for directions of unit norm, or ``"auto"``: see :func:`~lightning_vamo.core.probes.radius.auto_mu`.
        alpha: The mixing coefficient :math:`\alpha`, or ``"theory"``: the paper's, :math:`q/d`. ``"adaptive"``, the default,
            multiplies the theory's by what a regression of gradients on rows finds, direction by direction, and
            ``"linear-decay"`` lets it fall to 0 over an epoch: see :mod:`lightning_vamo.core.adaptive`.
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
            :class:`~lightning_vamo.core.control.carried.CarriedRows`. Without it the rows of a snapshot stay as they were
            measured.
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
        self.settings = VAMOSettings(
            schedule=as_schedule(probes),
            directions=GradientSubspaceDirections() if directions is None else directions,
            mu=mu,
            alpha=alpha,
            difference=difference,
            control=control,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            seed=seed,
            sweep_precision=sweep_precision,
            carry=carry,
            sweep=sweep,
        )
        self.probes_in_float32 = sweep_precision is not None
        self._run = Run(self.settings)
        self._attached = ExitStack()
        self._trainer: Trainer | None = None
        self._resumption: Resumption | None = None

    schedule: ProbeSchedule = _setting("schedule")
    directions: Directions = _setting("directions")
    mu: float | Literal["auto"] = _setting("mu")
    alpha: Alpha = _setting("alpha")
    difference: Difference = _setting("difference")
    control: Control = _setting("control")
    every_n_epochs: int = _setting("every_n_epochs")
    every_n_train_steps: int | None = _setting("every_n_train_steps")
    seed: int | None = _setting("seed")
    sweep_precision: SweepPrecision = _setting("sweep_precision")
    carry: bool = _setting("carry")
    sweep: bool = _setting("sweep")

    @property
    def report(self) -> VAMOReport:
        """What the probes have cost and removed so far; printed, it reads as a few lines of text."""
        return self._run.ledger.report(self._standing)

    @property
    def _standing(self) -> Standing:
        return self._run.standing

    @property
    def _totals(self) -> Totals:
        return self._run.ledger.totals

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
        checks.check_strategy(trainer.strategy)
        checks.check_module(pl_module, VAMOMixin)
        self._run = Run(self.settings)
        self._resumption = None
        self._attached.enter_context(checks.one_optimizer(trainer.strategy))
        if not self.settings.never_probes:
            required = self.settings.control == "replay"
            self._attached.enter_context(recording(trainer, self._replay, required=required))
            # Carried rows belong to samples, however they are augmented: the last use was of others too.
            if not self.settings.carry:
                self._attached.enter_context(self._run.watch.watching(trainer, lambda: self.probing))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse optimizers, and numbers of probes, that do not fit."""
        settings = self.settings
        checks.check_optimizer(trainer.optimizers)
        most = settings.most(trainer.current_epoch)
        if most:
            checks.check_probes_fit(trainer.optimizers, settings.directions, most, settings.alpha)
        if settings.sweep_precision is not None:
            check_float32(trainer, trainable_parameters(trainer.optimizers))
        if settings.seed is not None:
            self._totals.seed = settings.seed
        elif self._totals.seed is None:  # else it is a checkpoint's
            self._totals.seed = trainer.strategy.broadcast(torch.initial_seed())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the training steps. Not earlier: the LR finder trains, plainly, before this hook."""
        self._trainer = trainer
        run = self._run
        # From a checkpoint without a plan, such as plain Lightning's, the plan begins with the batch that comes next.
        run.standing.first = compat.position(trainer) or 0
        if self._resumption is not None:
            schedule = self.settings.schedule if run.choice is None else run.choice.schedule
            run.standing = self._attached.enter_context(self._resumption.taken_up(trainer, self.settings, schedule))
        stepping = functools.partial(self.stepping, trainer, pl_module)
        self._attached.enter_context(compat.manual_steps(trainer, pl_module, stepping))
        run.ledger.begin_epoch()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give everything back as it was."""
        self._detach()
        self._trainer = None
        self._run.standing = Standing()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give everything back as it was, but for what a checkpoint that is saved next needs."""
        with suppress(UnsupportedError):  # then no checkpoint can hold the epoch, and says so
            self._standing.plan = plan_within(trainer, self._standing)
        self._detach()

    def _detach(self) -> None:
        self._attached.close()
        self._run.ledger.stop()

    # ---- epochs and snapshots

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the steps, and go on with a validation that an exception ended."""
        if self._run.choice is not None:
            self._run.choice.clock.stop(trainer.strategy.root_device)
        if self._resumption is not None:
            self._resumption.validation_starts(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this epoch takes a snapshot, or goes on with the batches of the last one."""
        self._run.ledger.begin_epoch()
        standing, settings = self._standing, self.settings
        standing.first = standing.unused = 0
        standing.plan = None
        if compat.skips_backward(trainer):
            return
        # A reloaded loader may hold other data, to which the rows do not belong.
        stale = standing.taken is not None and not standing.taken.belongs_to(compat.train_loader(trainer))
        learning = standing.learner is not None and standing.taken is None
        standing.due |= stale
        if settings.every_n_train_steps is None:
            standing.due |= learning or trainer.current_epoch % settings.every_n_epochs == 0
        if stale and not settings.sweep:
            self._run.advice.on_reloaded_rows()
        if stale or (standing.due and settings.sweep):
            standing.taken = None
        if standing.taken is not None and standing.taken.plan is not None:
            generator = seeded(self._totals.seed_for(f"order of epoch {trainer.current_epoch}"))
            standing.order = next_epoch(standing.taken, standing.taken.plan, generator)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the snapshot, if one is due.

        The epoch's first batch has been drawn by now, so the plan exists, and every hook of the epoch's start has run.
        """
        self._resumption = None
        run, standing, every = self._run, self._standing, self.settings.every_n_train_steps
        if compat.skips_backward(trainer):
            return
        if standing.taken is not None and not fits(trainer, standing.taken):
            standing.taken, standing.due = None, True
        if batch_idx % trainer.accumulate_grad_batches == 0:
            standing.due |= every is not None and trainer.global_step - standing.step >= every
            standing.due |= standing.learned_at is not None and trainer.global_step >= standing.learned_at
        if standing.due:
            if run.choice is not None:
                run.choice.clock.stop(trainer.strategy.root_device)
            standing.step = trainer.global_step
            self._take_snapshot(trainer, pl_module, batch_idx)
            standing.due = False
        if run.watch.check(standing.fingerprint(batch_idx)):
            left_out = trainer.world_size == 1 or compat.averages_gradients(trainer)
            standing.unused += left_out
            run.advice.on_other_batch(left_out)
        if run.choice is not None:
            run.choice.clock.batch_starts()

    def _take_snapshot(self, trainer: Trainer, module: LightningModule, batch_idx: int) -> None:
        DueSnapshot(self._run, trainer, module, self).take(batch_idx)
        for observer in observers(trainer):
            observer.on_snapshot(trainer, module, self._standing.taken)

    # ---- steps

    @override
    def before_step(self, trainer: Trainer, module: LightningModule, batch: Any) -> None:
        """Recompute the row of the batch, where the snapshot's weights have been kept for that."""
        taken = self._standing.taken
        if taken is not None and taken.recomputation is not None and not compat.skips_backward(trainer):
            with self._run.ledger.timing_row(module.device), probing(trainer, module, "row"):
                self._totals.forward_evaluations += taken.recomputation.evaluate(trainer, module, self, batch)

    @override
    def around_backward(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Where several ranks have to correct alike, keep this rank's part of the row out if it is another batch's."""
        return withheld(trainer, self._standing) if self._run.watch.differs else nullcontext()

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
        left_out = self._run.watch.differs and trainer.world_size == 1
        row = None if standing.taken is None or skipped or left_out else standing.row(trainer.fit_loop.batch_idx)
        for observer in observers(trainer):
            observer.on_gradient(trainer, module, standing.taken, row)
        if row is not None:
            standing.rows.append(row)
        if last:
            moments = correct(trainer, standing)
            self._totals.steps += moments is not None
            for observer in observers(trainer):
                observer.on_correction(trainer, module, standing.taken, moments)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's figures."""
        figures = self._run.ledger.end_epoch(trainer, self._standing, self._run.choice)
        pl_module.log_dict({name: float(value) for name, value in figures.items()}, sync_dist=True)
        settings = self.settings
        keeps = not settings.sweep or settings.every_n_train_steps is not None
        if not keeps and (trainer.current_epoch + 1) % settings.every_n_epochs == 0:
            self._standing.taken = None

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        """Totals, the seed, and where each rank stands, as plain types and tensors; to be called on all ranks together."""
        ranks = []
        # Before and after the training, and where nothing is ever probed, a checkpoint is plain Lightning's.
        if self._trainer is not None and not self.settings.never_probes:
            ranks = saved(self._trainer, self._standing, self.settings.directions)
        ledger, choice = self._run.ledger, self._run.choice
        chosen = None if choice is None else choice.state_dict(ledger.pending_row_seconds())
        return {"totals": ledger.state_dict(), "choice": chosen, "ranks": ranks}

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Prepare to go on where the run was, before Lightning's loops read the checkpoint."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if trainer.state.fn == "fit" and state.get("ranks") and not self.settings.never_probes:
            self._resumption = Resumption(trainer, state["ranks"], checkpoint)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, and drawing directions, from a checkpoint."""
        check_readable(
            state_dict.keys() == {"totals", "choice", "ranks"} and state_dict["totals"].keys() == asdict(Totals()).keys()
        )
        self._totals.load_state_dict(state_dict["totals"])
        if self._run.choice is not None and state_dict["choice"] is not None:
            self._run.choice.load_state_dict(state_dict["choice"])

    def _replay(self, recorder: RecordingBatchSampler, index: int) -> None:
        """Let a loader that has just been set up begin with the batches that a checkpoint says are left."""
        if self._resumption is not None:
            self._resumption.replay(recorder, index)
