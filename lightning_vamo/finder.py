"""The finder: whether probes would pay, measured on a few dozen gradients of the user's own model before any training."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from typing_extensions import override

from lightning_vamo.callback import VAMOCallback
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections, OrthonormalDirections, ProbeDirections
from lightning_vamo.core.efficiency import batch_factor, efficiency, work_factor
from lightning_vamo.core.noise import GradientMoments, nested, noise_along, noise_of, ratio, removed
from lightning_vamo.core.probes import Difference, auto_mu, check_difference, check_mu
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.finding import ProbeFigures, ProbeFinding
from lightning_vamo.loop import compat, support
from lightning_vamo.loop.advice import LOWEST_SNR, Advice
from lightning_vamo.loop.asfound import Generators, as_found, generators_as_found
from lightning_vamo.loop.driver import GradientCallback, Mode
from lightning_vamo.loop.guards import silent
from lightning_vamo.loop.plan import Plan, plan_of
from lightning_vamo.loop.precision import SweepPrecision, arithmetic, check_float32, check_sweep_precision
from lightning_vamo.loop.recording import recording
from lightning_vamo.loop.snapshot import seeded
from lightning_vamo.loop.sweep import Sweep, sweep
from lightning_vamo.loop.warmup import differentiate
from lightning_vamo.mixin import VAMOMixin, with_vamo

FEWEST_BATCHES = 8
"""Fewer gradients than that say nothing about their noise."""

RANDOM_BATCHES = 8
"""How many held-out gradients are projected on random directions too, whose numbers are drawn anew for each."""

WIDER = (1.0, 4.0, 16.0)
"""Multiples of the automatic radius that are tried, as long as the probe differences drown in their error."""

MOST_REMOVED = 0.999
"""A few dozen gradients cannot show that more than this share of the noise is gone."""


def find_probes(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    train_dataloaders: Any = None,
    *,
    maximum: int = 16,
    batches: int = 64,
    directions: Directions | None = None,
    mu: float | Literal["auto"] | None = None,
    difference: Difference | None = None,
    sweep_precision: SweepPrecision = None,
    seed: int | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> ProbeFinding:
    """Measure on a model's own gradients how much noise probes would remove, and whether they would pay.

    It begins a fit, draws mini-batch gradients where the first step would be taken, learns directions from half of them, sees
    how much of the other half's noise these hold, and sweeps that half's batches. No step is taken: the model, the Trainer with
    its callbacks and loggers, the data module and all random states are left as they were found, also by an error.

    Args:
        trainer: The Trainer to train with, on a single device or with DDP. Its callbacks and loggers are set aside; settings
            that are not given here are those of its VAMOCallback, if it has one.
        model: The model, with the :class:`~lightning_vamo.VAMOMixin` or without.
        datamodule: Its data, as for ``Trainer.fit``.
        train_dataloaders: Its data, as for ``Trainer.fit``.
        maximum: The largest number of probes to look at.
        batches: How many mini-batches to draw gradients from. Half of them, for learning, are differentiated twice.
        directions: The family that learns; by default :class:`~lightning_vamo.core.directions.GradientSubspaceDirections`.
        mu: Smoothing radius, or ``"auto"``, which is widened where the probe differences drown in rounding.
        difference: ``"forward"`` or ``"central"``.
        sweep_precision: See :class:`~lightning_vamo.VAMOCallback`.
        seed: Seed of the directions; by default it follows from the global seed.
        ckpt_path: A checkpoint to measure at: of its weights, at the first batch that a fit would take up training with.
        weights_only: How to load it, as for ``Trainer.fit``.

    Returns:
        The figures, and the advice that follows from them.

    Raises:
        InvalidArgumentError: If an argument is not allowed.
        UnsupportedError: If the model, the data or the Trainer cannot be trained with VAMO, or there are too few batches.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> finding = find_probes(trainer, BoringModel(), maximum=2)
        >>> [figures.probes for figures in finding.figures]
        [1, 2]
    """
    if not isinstance(datamodule, LightningDataModule | None):
        raise InvalidArgumentError(
            f"`datamodule` must be a LightningDataModule, got {type(datamodule).__name__}: pass loaders as `train_dataloaders`."
        )
    callback = next((c for c in trainer.callbacks if isinstance(c, VAMOCallback)), VAMOCallback())  # type: ignore[attr-defined]
    settings = _Settings(
        maximum=maximum,
        batches=batches,
        directions=directions or (callback.directions if callback.directions.learns else GradientSubspaceDirections()),
        mu=callback.mu if mu is None else mu,
        difference=difference or callback.difference,
        sweep_precision=sweep_precision or callback.sweep_precision,
        seed=callback.seed if seed is None else seed,
    )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UnsupportedError(
            "find_probes cannot give back a model as it was before ModelParallelStrategy sharded it: find the probes on a"
            " single device or with Trainer(strategy='ddp')."
        )
    support.check_strategy(trainer.strategy)
    data = {
        "train_dataloaders": train_dataloaders,
        "datamodule": datamodule,
        "ckpt_path": ckpt_path,
        "weights_only": weights_only,
    }
    with as_found(trainer, model, datamodule):
        # Within the callback, which is handed to processes and back as it is, the settings and figures may be frozen.
        finding = compat.launched(trainer, with_vamo(model), _measured, _Measurement(settings), data).finding
    if finding is None:
        raise UnsupportedError(
            "The fit ended before its first batch, so there was no gradient to look at: check `limit_train_batches` and"
            " the training data."
        )
    return finding


@dataclass(frozen=True)
class _Settings:
    maximum: int
    batches: int
    directions: Directions
    mu: float | Literal["auto"]
    difference: Difference
    sweep_precision: SweepPrecision
    seed: int | None

    def __post_init__(self) -> None:
        for name, value, least in (("maximum", self.maximum, 1), ("batches", self.batches, FEWEST_BATCHES)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidArgumentError(f"`{name}` must be a whole number >= {least}, got {value!r}.")
        if not isinstance(self.directions, Directions) or not self.directions.learns:
            raise InvalidArgumentError(
                f"`directions` must be a family that learns, such as GradientSubspaceDirections(), got {self.directions!r};"
                " random directions are measured anyway."
            )
        check_mu(self.mu)
        check_difference(self.difference)
        check_sweep_precision(self.sweep_precision)


def _measured(trainer: Trainer, module: LightningModule, measurement: "_Measurement", data: dict[str, Any]) -> "_Measurement":
    """Measure within a fit; called in each of its processes."""
    support.check_module(module, VAMOMixin)
    trainer.callbacks = [measurement]  # type: ignore[attr-defined]
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    with ExitStack() as attached:
        attached.enter_context(silent(trainer, module))
        attached.enter_context(support.one_optimizer(trainer.strategy))
        generators = attached.enter_context(generators_as_found())
        attached.enter_context(_watched(trainer, generators))
        attached.enter_context(recording(trainer, lambda recorder, index: None))
        compat.fit_until_ended(trainer, module, **data)
    return measurement


@contextmanager
def _watched(trainer: Trainer, generators: Generators) -> Iterator[None]:
    """Let the training loaders' generators be known before anything is drawn from them."""
    process = trainer.strategy.process_dataloader

    def process_dataloader(loader: Any) -> object:
        generators.keep((loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)))
        return process(loader)

    with compat.replaced(trainer.strategy, "process_dataloader", process_dataloader):
        yield


@dataclass(frozen=True)
class _HeldOut:
    """Gradients that nothing was learned from: which batches', what is known of them, and how long they took."""

    positions: list[int]
    coordinates: Tensor
    random: Tensor
    products: Tensor
    moments: GradientMoments
    seconds: float


class _Measurement(GradientCallback):
    """Measures at the first batch of a fit, and ends it there.

    Args:
        settings: What to measure.
    """

    def __init__(self, settings: _Settings) -> None:
        super().__init__()
        self.finding: ProbeFinding | None = None
        self._settings = settings

    @override
    def after_backward(self, trainer: Trainer, module: LightningModule, *, first: bool, last: bool, skipped: bool) -> None:
        """Not called: no step is taken."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the optimizer, and let a training that has come to its end begin one more epoch."""
        support.check_optimizer(trainer.optimizers)
        if self._settings.sweep_precision is not None:
            check_float32(trainer, support.trainable_parameters(trainer.optimizers))
        # After the schedulers were made, which may ask for the number of steps.
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure."""
        compat.drop_gradients(trainer, pl_module, batch_idx)
        self.finding = self._measured(trainer, pl_module, plan_of(trainer))
        raise compat.FitEnded

    def _measured(self, trainer: Trainer, module: LightningModule, plan: Plan) -> ProbeFinding:
        parameters = support.trainable_parameters(trainer.optimizers)
        count = min(self._settings.batches, plan.length)
        if count < FEWEST_BATCHES:
            raise UnsupportedError(
                f"The epoch has {plan.length} batches, and the noise of gradients cannot be told from fewer than"
                f" {FEWEST_BATCHES}: use more data, or smaller batches."
            )
        held = count // 2
        seed = trainer.strategy.broadcast(torch.initial_seed()) if self._settings.seed is None else self._settings.seed
        generator = seeded(seed)
        learned, moments = self._learned(trainer, module, plan, parameters, range(held, count), generator)
        random = OrthonormalDirections("seeded").draw(parameters, learned.count, generator)
        out = self._held_out(trainer, module, plan.first(held), parameters, learned, random, moments)
        swept, mu, seconds = self._swept(trainer, module, plan.first(held), parameters, learned)
        return self._finding(trainer, learned, moments, out, swept, mu, seconds, sum(plan.sizes()[:count]) / count)

    def _learned(
        self,
        trainer: Trainer,
        module: LightningModule,
        plan: Plan,
        parameters: Sequence[Tensor],
        positions: range,
        generator: torch.Generator,
    ) -> tuple[ProbeDirections, GradientMoments]:
        """Two passes of power iteration, over the same gradients."""
        dimension = sum(parameter.numel() for parameter in parameters)
        maximum = min(self._settings.maximum, dimension, len(positions) - 1)  # no more than there are differences to learn from
        learner = self._settings.directions.learner(parameters, maximum, generator)
        for _ in range(2):
            moments = GradientMoments(parameters)
            differentiate(trainer, module, plan, parameters, positions, _finite(_both(learner.observe, moments.observe)))
            learned = learner.directions(maximum, generator)
        if not learner.ready:
            raise UnsupportedError(
                f"Of {len(positions)} batches, {moments.count} gave a finite gradient: too few to learn {maximum} directions"
                " from."
            )
        return learned, moments

    def _held_out(
        self,
        trainer: Trainer,
        module: LightningModule,
        plan: Plan,
        parameters: Sequence[Tensor],
        learned: ProbeDirections,
        random: ProbeDirections,
        others: GradientMoments,
    ) -> _HeldOut:
        positions: list[int] = []
        coordinates: list[Tensor] = []
        chance: list[Tensor] = []
        products: list[Tensor] = []
        times: list[float] = []
        moments = GradientMoments(parameters)

        def see(position: int, gradients: list[Tensor | None], start: float) -> None:
            times.append(_now(module) - start)
            positions.append(position)
            coordinates.append(learned.project(gradients).double().cpu())
            if len(chance) < RANDOM_BATCHES:
                chance.append(random.project(gradients).double().cpu())
            products.append(others.product(gradients))
            moments.observe(gradients)

        differentiate(trainer, module, plan, parameters, range(plan.length), _finite(see))
        if moments.count < 2:
            raise UnsupportedError("Fewer than two held-out batches gave a finite gradient: there is no noise to look at.")
        timed = times[1:]  # the first one may wait for workers to start
        turned = torch.stack(coordinates) @ nested(learned)
        return _HeldOut(positions, turned, torch.stack(chance), torch.stack(products), moments, sum(timed) / len(timed))

    def _swept(
        self, trainer: Trainer, module: LightningModule, plan: Plan, parameters: Sequence[Tensor], learned: ProbeDirections
    ) -> tuple[Sweep, float, float]:
        """Sweep as training would; returns the sweep, its radius, and the time of a forward pass."""
        settings = self._settings
        self.probes_in_float32 = settings.sweep_precision is not None
        began: list[float] = []

        def evaluate(batch: Any, position: int) -> Any:
            if not began:  # the first batch is there: what comes before is the start of workers, once an epoch
                began.append(_now(module))
            self.probed_position = position
            return compat.run_training_step(trainer, batch, position)

        if settings.mu == "auto":
            dtype = arithmetic(trainer, settings.sweep_precision)
            automatic = auto_mu(parameters, settings.difference, dtype, steep=True)
            radii = [automatic * factor for factor in WIDER]
        else:
            radii = [settings.mu]
        tried = []
        for radius in radii:
            began.clear()
            with self.mode(Mode.PROBE):
                result = sweep(trainer, module, plan, evaluate, parameters, learned, radius, settings.difference)
            tried.append((result, radius, (_now(module) - began[0]) / result.evaluations))
            if result.snr is None or result.snr >= LOWEST_SNR:
                break
        best = max(tried, key=lambda one: one[0].snr or 0.0)
        Advice().on_sweep(trainer, best[0], best[1], settings.sweep_precision)
        return best

    def _finding(
        self,
        trainer: Trainer,
        learned: ProbeDirections,
        moments: GradientMoments,
        out: _HeldOut,
        swept: Sweep,
        mu: float,
        seconds: float,
        size: float,
    ) -> ProbeFinding:
        maximum, whole = learned.count, out.moments.squares
        rows = learned.whiten(swept.deltas)[out.positions].double().cpu() @ nested(learned)
        spectrum, _ = ratio(noise_along(out.coordinates).square(), whole)
        # Both held in full by what exact slopes remove, and by what measured ones do.
        held, held_error = ratio(removed(out.coordinates, out.coordinates), whole)
        gone, gone_error = ratio(removed(out.coordinates, rows), whole)
        chance, _ = ratio(removed(out.random, out.random), whole[: len(out.random) - 1])
        forward = float(trainer.strategy.broadcast(seconds / out.seconds))
        noise = noise_of(torch.cat((moments.squares, whole)), out.products)
        gone_at_most = gone.clamp(max=MOST_REMOVED)
        worth = batch_factor(gone_at_most)
        work = work_factor(maximum, forward, self._settings.difference)
        efficient = efficiency(gone_at_most, forward, self._settings.difference)
        figures = tuple(
            ProbeFigures(
                count,
                *(float(column[count - 1]) for column in (chance, held, held_error, gone, gone_error, worth)),
                *(float(column[count]) for column in (work, efficient)),
            )
            for count in _counts(maximum)
        )
        return ProbeFinding(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            parameters=learned.dimension,
            batches=moments.count + out.moments.count,
            batch_size=size * trainer.world_size,
            batches_per_step=trainer.accumulate_grad_batches,
            noise_to_signal=noise.to_signal,
            signal_is_known=noise.is_known,
            spectrum=tuple(spectrum.tolist()),
            mu=mu,
            difference=self._settings.difference,
            snr=swept.snr,
            step_seconds=out.seconds,
            forward_seconds=forward * out.seconds,
            figures=figures,
        )


_See = Callable[[int, list[Tensor | None], float], None]


def _finite(see: _See) -> _See:
    """Pass over gradients that are not finite, with which the optimizer would skip the step."""

    def finite(position: int, gradients: list[Tensor | None], start: float) -> None:
        if all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients):
            see(position, gradients, start)

    return finite


def _both(*observers: Callable[[Sequence[Tensor | None]], None]) -> _See:
    def see(position: int, gradients: list[Tensor | None], start: float) -> None:
        for observe in observers:
            observe(gradients)

    return see


def _counts(maximum: int) -> list[int]:
    """1, 2, 4 and so on, and the maximum."""
    return sorted({2**power for power in range(maximum.bit_length())} | {maximum})


def _now(module: LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()
