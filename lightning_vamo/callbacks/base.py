"""The base class of all callbacks: a callback attaches to a Trainer and passes the Trainer's hooks on to the run."""

import functools
from abc import abstractmethod
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lightning_vamo.callbacks.drawn import AT_SNAPSHOT, drawn, log_at_snapshot
from lightning_vamo.callbacks.state import CallbackState
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import checks, compat
from lightning_vamo.loop.checkpoint.resume import Resumption
from lightning_vamo.loop.checkpoint.state import frozen, plan_within, read, readable, saved
from lightning_vamo.loop.control.base import Control
from lightning_vamo.loop.control.nothing import Nothing
from lightning_vamo.loop.control.settings import PLAIN, ProbeSettings
from lightning_vamo.loop.gradient.base import Gradient
from lightning_vamo.loop.gradient.first_order import FirstOrder
from lightning_vamo.loop.ledger.totals import Totals
from lightning_vamo.loop.ledger.ways import VAMO_WAYS, Ways
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.record import record_again, recording
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler
from lightning_vamo.loop.run.method import Method
from lightning_vamo.loop.run.run import Run
from lightning_vamo.loop.step.driver import DrivingCallback, ManualSteps
from lightning_vamo.loop.sweep.precision import check_float32
from lightning_vamo.mixin import VAMOMixin
from lightning_vamo.report import MethodReport, epoch_in_words


class MethodCallback(DrivingCallback):
    """Base class of all callbacks: a method computes a gradient and subtracts a control variate from the gradient.

    A subclass names the gradient and the control variate, and has its own arguments. This class and the run do the rest.

    Args:
        gradient: Where the gradient of a step comes from.
        control: The control variate that is subtracted from the gradient; by default nothing.
        settings: The settings of probes, for methods that probe.
        seed: Seed of all random numbers of the method; by default derived from the global seed. The global generators are never
            touched.
        plain: Whether the arguments ask for plain training: then Lightning trains by itself.
        verbose: Whether to log, after each epoch and at the end of training, the method's cost and the noise that it removed.

    Raises:
        InvalidArgumentError: If ``seed`` is not a whole number, or ``verbose`` not a bool.
    """

    prefix: ClassVar[str] = "vamo"
    """The part before the slash in the names of logged figures."""

    title: ClassVar[str] = ""
    """The method's name in reports; by default the callback's name without "Callback"."""

    ways: ClassVar[Ways] = VAMO_WAYS
    """The callback's arguments that warnings recommend."""

    @abstractmethod  # a method's callback has arguments of its own
    def __init__(
        self,
        gradient: Gradient | None = None,
        control: Control | None = None,
        settings: ProbeSettings | None = None,
        seed: int | None = None,
        *,
        plain: bool = False,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        checks.check_common(seed, verbose)
        self.seed = seed
        self.verbose = verbose
        self._plain = plain
        parts = gradient or FirstOrder(), control or Nothing(), settings or PLAIN
        self._method = Method(type(self).__name__, *parts, self.prefix, self.ways)
        self._run = Run(self._method, self.driver)
        self._attached = ExitStack()
        self._trainer: Trainer | None = None
        self._resumption: Resumption | None = None
        self._loads = False  # whether a state that is loaded is that of a run to go on with

    @property
    def report(self) -> MethodReport:
        """The cost of the method so far and the noise that it removed; printed, the report is a few lines of text."""
        report = self._run.ledger.report(self._run.sums.moments)
        title, ways, choice = self.title or type(self).__name__.removesuffix("Callback"), self.ways, self._run.choice
        gradient = self._method.gradient
        chosen: dict[str, Any] = {} if choice is None else {"decisions": tuple(choice.decisions), "measured": True}
        parts = {"made_of": self._method.control.made_of, "step_forwards": gradient.forwards, "lost": gradient.lost, **chosen}
        return replace(report, method=title, plain=ways.plain, recompute=ways.recompute, **parts)

    @property
    def settings(self) -> ProbeSettings:
        """The settings of the method's probes."""
        return self._method.settings

    @property
    def control(self) -> Control:
        """The control variate that the method subtracts from the gradient."""
        return self._method.control

    @property
    def _keeps_place(self) -> bool:
        return self._method.gradient.keeps_place or not isinstance(self._method.control, Nothing)

    # ---- attach to a Trainer, and detach

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module or Trainer that the method cannot train, and let the training loaders record their batches."""
        if stage != "fit" or self._plain:
            return
        checks.check_package("trainer", trainer)
        method, name, control = self._method, self._method.name, self._method.control
        checks.check_alone([each for each in trainer.callbacks if isinstance(each, DrivingCallback)])  # type: ignore[attr-defined]
        checks.check_strategy(trainer.strategy, name)
        checks.check_module(pl_module, VAMOMixin, name)
        self._run = Run(method, self.driver)
        self._run.frozen = frozen(pl_module)
        self._resumption = self._trainer = None  # after a fit that an exception has ended, there is no teardown
        self._attached.enter_context(checks.one_optimizer(trainer.strategy, name))
        if method.records:
            self._attached.enter_context(recording(trainer, self._replay, required=method.must_record, instead=control.instead))
        if control.watches:
            self._attached.enter_context(self._run.watch.watching(trainer))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer or a number of probes that the method cannot use."""
        if self._plain:
            return
        method, settings, run = self._method, self._method.settings, self._run
        if method.records:
            record_again(trainer, required=method.must_record)
        checks.check_optimizer(trainer.optimizers, method.name)
        most = settings.most(trainer.current_epoch)
        if most:
            checks.check_probes_fit(trainer.optimizers, settings.directions, most, method.gradient.bounded(settings.alpha))
        if settings.sweep_precision is not None:
            check_float32(trainer, trainable_parameters(trainer.optimizers))
        if self.seed is not None:
            run.seeds.seed = self.seed
        elif run.seeds.seed is None:  # otherwise the seed comes from a checkpoint
            run.seeds.seed = trainer.strategy.broadcast(torch.initial_seed())
        method.gradient.begin(trainer, pl_module, method.name)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the training steps. Not earlier: the LR finder runs plain training steps before this hook."""
        if self._plain:
            return
        self._trainer, run = trainer, self._run
        # After a checkpoint without a plan, such as plain Lightning's, the plan begins with the next batch.
        run.cursor.first = compat.position(trainer) or 0
        if self._resumption is not None:
            self._attached.enter_context(self._resumption.taken_up(trainer, run))
        steps = ManualSteps(self.driver, self._method.gradient, run, self._method.name)
        self._attached.enter_context(
            compat.manual_steps(
                trainer,
                self,
                pl_module,
                functools.partial(steps.one, trainer, pl_module),
                functools.partial(steps.direct, trainer, pl_module),
                functools.partial(run.drives, trainer),
                run.ledger.stepped_plainly,
                self.signals,
            )
        )
        run.ledger.begin_epoch(trainer.current_epoch)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Undo all changes to the Trainer and the module."""
        self._detach()
        self._trainer = None
        self._run.release()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Undo all changes to the Trainer and the module, but keep the state that a checkpoint of the failed run needs."""
        if self._plain:
            return
        if isinstance(exception, KeyboardInterrupt) and self._trainer is not None:
            self._say(self.report.interrupted())
        with suppress(UnsupportedError):  # then no checkpoint can hold the epoch, and a warning says so
            self._run.plan = plan_within(trainer, self._run)
        self._detach()

    def _detach(self) -> None:
        self._run.ledger.stop()
        self._attached.close()

    # ---- epochs and batches

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of the steps, and resume a validation that an exception interrupted."""
        if self._run.choice is not None:
            self._run.choice.times.stop()
        if self._resumption is not None:
            self._resumption.validation_starts(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether this epoch takes a new snapshot or uses the last snapshot again."""
        if not self._plain:
            with self.signals.closed():
                self._run.begin_epoch(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the snapshot if a snapshot is due.

        The epoch's first batch has been drawn by now, so the plan exists, and every hook of the epoch's start has run.
        """
        if self._plain:
            return
        self._resumption, run = None, self._run
        if run.resting is not None:
            run.resting.times.batch_starts("plain")
            return
        with self.signals.closed():
            taken = run.before_batch(trainer, pl_module, batch_idx)
        for sentence in [] if run.choice is None else run.choice.news():
            self._say(f"{self.report.method}, {sentence}")
        if taken is not None:
            log_at_snapshot(trainer, taken.logs, self.prefix)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's figures."""
        if self._plain:
            return
        figures = self._run.end_epoch(trainer)
        self._run.ledger.totals.add_epoch(trainer.global_step, drawn(trainer, figures, self.prefix))
        named = {f"{self.prefix}/{name}": float(value) for name, value in figures.items()}
        # Figures of a snapshot have been logged at its step; here they are only set for callbacks, as EarlyStopping.
        unlogged = [f"{self.prefix}/{name}" for name in AT_SNAPSHOT]
        compat.log_epoch(trainer, named, shown=[f"{self.prefix}/variance_removed"], unlogged=unlogged)
        if self._method.control.made_of is not None and self.verbose:
            report = self.report
            self._say(f"{report.method}, epoch {trainer.current_epoch}: {epoch_in_words(figures, report)}.")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the report: the cost of the method, and the noise that the method has removed."""
        if not self._plain:
            self._say(str(self.report))

    def _say(self, what: str) -> None:
        if self.verbose:
            rank_zero_info(what)

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        """Totals, seed, and the position of each rank, as plain types and tensors; all ranks must call this method together."""
        if self._plain:
            return {}
        run, ranks = self._run, []
        # Before and after the training, and if nothing is ever probed, a checkpoint is plain Lightning's.
        if self._trainer is not None and self._keeps_place:
            ranks = saved(self._trainer, run)
        choice = None if run.choice is None else run.choice.state_dict()
        return vars(CallbackState(run.seeds.seed, run.ledger.state_dict(), choice, ranks))

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Prepare to resume the run before Lightning's loops read the checkpoint."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        # Within the training, a tuner loads the checkpoint that it has just saved.
        self._loads = trainer.state.fn == "fit" and self._trainer is None
        if self._loads and state.get("ranks") and self._keeps_place:
            self._resumption = Resumption(trainer, self._run, state["ranks"], checkpoint, self._method.name)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the totals and the seed from a checkpoint."""
        if self._plain or not self._loads:
            return
        state, run = read(CallbackState, state_dict, self._method.name), self._run
        run.ledger.totals = read(Totals, state.totals, self._method.name)
        run.seeds.seed = state.seed
        if run.choice is not None and state.choice is not None:
            with readable(self._method.name):
                run.choice.load_state_dict(state.choice)

    def _replay(self, recorder: RecordingBatchSampler, index: int) -> None:
        """Make a newly set up loader begin with the remaining batches of a checkpoint."""
        if self._resumption is not None:
            self._resumption.replay(recorder, index)
