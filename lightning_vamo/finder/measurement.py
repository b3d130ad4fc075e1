"""The finder's measurements, at the first batch of a fit, and after a few steps where rows can be carried."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_vamo.core.directions import OrthonormalDirections, ProbeDirections
from lightning_vamo.core.noise import GradientMoments, noise_of
from lightning_vamo.core.probes.radius import auto_mu
from lightning_vamo.errors import UnsupportedError
from lightning_vamo.finder.aging import Aging, carried_share
from lightning_vamo.finder.finding import ProbeFinding
from lightning_vamo.finder.held_out import FEWEST_BATCHES, BatchGradients, Gradients, HeldOut
from lightning_vamo.finder.settings import Settings
from lightning_vamo.loop import checks, compat
from lightning_vamo.loop.control.recompute import Recompute
from lightning_vamo.loop.ledger.advice import Advice
from lightning_vamo.loop.ledger.clocks import now
from lightning_vamo.loop.ledger.seeds import seeded
from lightning_vamo.loop.parameters import trainable_parameters
from lightning_vamo.loop.plan.fingerprint import BatchWatch
from lightning_vamo.loop.plan.plan import Plan, has_plan, plan_of
from lightning_vamo.loop.step.driver import DrivingCallback
from lightning_vamo.loop.sweep.agree import least
from lightning_vamo.loop.sweep.oracle import Oracle
from lightning_vamo.loop.sweep.precision import check_float32, is_mixed, uses_tf32
from lightning_vamo.loop.sweep.radius import EVALUATIONS as SEARCH
from lightning_vamo.loop.sweep.repeat import ChangingLossError
from lightning_vamo.loop.sweep.sweep import Sweep, sweep

INSTEAD = "or pass `find_probes` a DataLoader over a map-style sample of the data as `train_dataloaders`"
"""The remedy if the finder cannot know an epoch's batches in advance, for messages."""


class _AtTheFirstBatch(DrivingCallback):
    """Measures at the first batch of a fit, and ends the fit there, or a few steps later if rows can be carried."""

    def __init__(self, measurement: "Measurement") -> None:
        super().__init__()
        self._measurement = measurement
        self._trained = 0
        self._epochs = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer, and let a finished training begin another epoch."""
        checks.check_optimizer(trainer.optimizers, "find_probes")
        if self._measurement.settings.sweep_precision is not None:
            check_float32(trainer, trainable_parameters(trainer.optimizers))
        # Only now: the schedulers have been made, which may ask for the number of steps.
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure, and end the fit when nothing waits for further steps."""
        measurement = self._measurement
        if measurement.finding is None:
            compat.drop_gradients(trainer, pl_module, batch_idx)
            measurement.measure(trainer, pl_module, plan_of(trainer, INSTEAD))
        aging = measurement.aging
        if aging is None or self._trained == aging.held.length:
            compat.drop_gradients(trainer, pl_module, batch_idx)
            measurement.measure_aging(trainer, pl_module)
            raise compat.FitEnded
        self._trained += 1

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit where too few batches were left to see rows age: the next epoch would train on other batches."""
        self._epochs += 1
        # An epoch may be over at once, as at a checkpoint of its end, but not two.
        if self._measurement.finding is not None or self._epochs > 1:
            raise compat.FitEnded


class Measurement:
    """The finder's measurements in a fit that takes a few steps at most, which are undone.

    Args:
        settings: The settings of the measurement.

    Attributes:
        settings: The settings of the measurement.
        callback: Measures at the first batch of a fit.
        finding: The result; None before the first batch.
        aging: Slopes that wait for the weights to move; None if no rows can be carried.
        bar: Progress bar that counts the evaluations of batches; None if no bar is shown.
        watch: Remembers the fit's first batch.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.callback = _AtTheFirstBatch(self)
        self.finding: ProbeFinding | None = None
        self.aging: Aging | None = None
        self.bar: Any = None
        self.watch = BatchWatch()

    def advance(self) -> None:
        """Count an evaluation."""
        if self.bar is not None:
            self.bar.update()

    def measure(self, trainer: Trainer, module: LightningModule, plan: Plan) -> None:
        """Measure on the batches of a plan, at the present weights.

        Args:
            trainer: The trainer.
            module: Its module.
            plan: The epoch's batches.
        """
        with self.watch.looking_away():
            self.finding = self._measured(trainer, module, plan)

    def measure_aging(self, trainer: Trainer, module: LightningModule) -> None:
        """Measure what is left of the slopes that have waited, if some have.

        Args:
            trainer: The trainer.
            module: Its module.
        """
        aging, self.aging = self.aging, None
        if aging is None or self.finding is None:
            return
        with self.watch.looking_away():
            share = carried_share(aging.explained(trainer, module), self.finding.spectrum)
        self.finding = replace(self.finding, carried=share, aged=aging.held.length, epoch_batches=aging.epoch)

    def _measured(self, trainer: Trainer, module: LightningModule, plan: Plan) -> ProbeFinding:
        settings = self.settings
        parameters = trainable_parameters(trainer.optimizers)
        count = min(settings.batches, plan.length)
        _check_enough(plan)
        held = plan.first(count // 2)  # the first batches, so that their sweep need not skip others
        generator = seeded(trainer.strategy.broadcast(torch.initial_seed()) if settings.seed is None else settings.seed)
        learning = BatchGradients(trainer, module, plan, parameters, range(held.length, count), self.advance)
        if self.bar is not None:
            self.bar.total = self._evaluations(len(learning.positions), held.length)
        learned, moments = _learned(learning, settings, generator)
        random = OrthonormalDirections("seeded").draw(parameters, learned.count, generator)
        seen = HeldOut(learned, random, moments, module)
        BatchGradients(trainer, module, held, parameters, range(held.length), self.advance).show(seen)
        if seen.moments.count < 2:
            raise UnsupportedError(
                "Fewer than two held-out batches gave a finite gradient, so there is no noise to measure: check the data, or"
                " measure at another checkpoint."
            )
        swept, forward_seconds = self._swept(trainer, module, held, parameters, learned)
        same = self._comes_twice(trainer, swept)
        rows = learned.whiten(swept.deltas)[seen.positions].double().cpu() if same else None
        control = settings.sweeping if same or not settings.sweeping.watches else Recompute()
        # The clocks of ranks differ, but all ranks have to give the same advice.
        step_seconds, forward_seconds = trainer.strategy.broadcast((seen.seconds, forward_seconds))
        accumulated = settings.batches_per_step(trainer)
        sweeps = control.sweeps(plan.length / accumulated)
        spectrum, figures = seen.figures(rows, forward_seconds / step_seconds, settings.difference, sweeps)
        if settings.carries and has_plan(trainer) and compat.grad_scale(trainer) is None:
            self.aging = Aging.of(seen, held, plan.length, parameters, learned)
        noise = noise_of(torch.cat((moments.squares, seen.moments.squares)), torch.stack(seen.products))
        return ProbeFinding(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            parameters=learned.dimension,
            batches=moments.count + seen.moments.count,
            batch_size=sum(plan.sizes()[:count]) / count * trainer.world_size,
            batches_per_step=accumulated,
            noise_to_signal=noise.to_signal,
            signal_is_known=noise.is_known,
            spectrum=spectrum,
            mu=swept.mu,
            difference=settings.difference,
            snr=swept.snr,
            comes_twice=same,
            step_seconds=step_seconds,
            forward_seconds=forward_seconds,
            figures=figures,
            only_carries=settings.only_carries,
        )

    def _evaluations(self, learned_from: int, held: int) -> int:
        """The number of coming evaluations of batches, unless the search for the radius ends early."""
        probes, sides = min(self.settings.maximum, learned_from - 1), 2 if self.settings.difference == "central" else 1
        looks = 1 + sides * (min(8, held) + min(4, held))
        if self.settings.mu == "auto":
            looks += sides * SEARCH
        return 2 * learned_from + held + held * (1 + sides * probes) + looks

    def _comes_twice(self, trainer: Trainer, swept: Sweep) -> bool:
        """Whether, on every rank, the sweep read the same first batch as the training loader."""
        first = swept.fingerprints[0]
        return bool(least(trainer, first is None or self.watch.seen is None or first == self.watch.seen))

    def _swept(
        self, trainer: Trainer, module: LightningModule, plan: Plan, parameters: Sequence[Tensor], learned: ProbeDirections
    ) -> tuple[Sweep, float]:
        """Sweep as in training; returns the sweep, and the time of a forward pass."""
        settings, began = self.settings, [0.0]
        oracle = Oracle(trainer, module, self.callback.driver.answering, float32=settings.sweep_precision is not None)

        def advance() -> None:
            # The clock begins with the first batch: before it, workers start, which they do once per epoch.
            began[0] = began[0] or now(module.device)
            self.advance()

        oracle.advance = advance

        search = settings.mu == "auto"
        mu = settings.mu
        if mu == "auto":
            mu = auto_mu(parameters, settings.difference, oracle.arithmetic, steep=True, robust=True)
        advice = Advice()
        try:
            swept = sweep(oracle, plan, parameters, learned, mu, settings.difference, search=search)
        except ChangingLossError as error:
            advice.on_changing_loss(error, first=True)
            raise
        mixed, tf32 = is_mixed(trainer, settings.sweep_precision), uses_tf32(trainer)
        advice.on_dropped(swept.directions_dropped, learned.count, swept.mu)
        advice.on_not_finite(swept.not_finite, len(swept.deltas))
        advice.on_snr(swept.snr, swept.trend, swept.mu, central=settings.difference == "central", mixed=mixed, tf32=tf32)
        return swept, (now(module.device) - began[0]) / swept.evaluations


def _check_enough(plan: Plan) -> None:
    if plan.length < FEWEST_BATCHES:
        raise UnsupportedError(
            f"The number of batches in the epoch is {plan.length}, but to measure the noise of gradients takes at least"
            f" {FEWEST_BATCHES}: use more data, or smaller batches."
        )


def _learned(
    learning: BatchGradients, settings: Settings, generator: torch.Generator
) -> tuple[ProbeDirections, GradientMoments]:
    """Directions after two passes of power iteration over the same gradients, and the moments of these gradients."""
    dimension = sum(parameter.numel() for parameter in learning.parameters)
    # No more directions than there are differences of gradients to learn from.
    maximum = min(settings.maximum, dimension, len(learning.positions) - 1)
    learner = settings.directions.learner(learning.parameters, maximum, generator)

    def see(position: int, gradients: Gradients, start: float) -> None:
        learner.observe(gradients)
        moments.observe(gradients)

    for _ in range(2):
        moments = GradientMoments(learning.parameters)
        learning.show(see)
        learned = learner.directions(maximum, generator)
    if not learner.ready:
        raise UnsupportedError(
            f"Of {len(learning.positions)} batches, {moments.count} gave a finite gradient: too few to learn {maximum}"
            " directions from. Set a smaller `maximum`."
        )
    return learned, moments
