"""The finder: measure on a few dozen gradients of the user's model, before any training, whether probes would pay."""

from contextlib import ExitStack
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_vamo.callbacks.vamo import VAMOCallback
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections
from lightning_vamo.core.probes.difference import Difference
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.finder.finding import ProbeFinding
from lightning_vamo.finder.measurement import INSTEAD, Measurement
from lightning_vamo.finder.settings import Settings
from lightning_vamo.loop import checks, compat
from lightning_vamo.loop.control.automatic import Auto
from lightning_vamo.loop.guards.silence import silent
from lightning_vamo.loop.guards.trainer_state import as_found, generators_as_found
from lightning_vamo.loop.plan.record import recording
from lightning_vamo.loop.sweep.precision import SweepPrecision
from lightning_vamo.loop.sweep.progress import finder_bar
from lightning_vamo.mixin import VAMOMixin, with_vamo


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

    The finder begins a fit and computes mini-batch gradients at the first step. It learns directions from one half of the
    gradients, measures how much noise of the other half the directions hold, and sweeps the batches of the other half. Where
    rows could be carried, the fit then takes a step on each of these batches, and measures how far their rows have aged. All is
    undone: the model, the Trainer with its callbacks and loggers, the data module and all random states are left as they were,
    even after an error.

    Args:
        trainer: The Trainer to train with, on a single device or with DDP. Its callbacks and loggers are set aside. If it has a
            VAMOCallback, the callback gives the settings that are not given here.
        model: The model, with the :class:`~lightning_vamo.VAMOMixin` or without.
        datamodule: The model's data, as for ``Trainer.fit``.
        train_dataloaders: The model's data, as for ``Trainer.fit``.
        maximum: The largest number of probes to look at.
        batches: Number of mini-batches to compute gradients of. The half that is learned from is differentiated twice.
        directions: The family that learns; by default :class:`~lightning_vamo.core.directions.GradientSubspaceDirections`.
        mu: Smoothing radius, or ``"auto"``, which is widened where the probe differences drown in rounding.
        difference: ``"forward"`` or ``"central"``.
        sweep_precision: See :class:`~lightning_vamo.VAMOCallback`.
        seed: Seed of the directions; by default derived from the global seed.
        ckpt_path: A checkpoint to measure at: with its weights, at the first batch that a resumed fit would train on.
        weights_only: How to load the checkpoint, as for ``Trainer.fit``.

    Returns:
        The figures, with advice whether to use probes.

    Raises:
        InvalidArgumentError: If an argument is not allowed.
        UnsupportedError: If the model, the data or the Trainer cannot be trained with VAMO, or there are too few batches.

    Example:
        >>> import lightning as L
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = L.Trainer(accelerator="cpu", **quiet)
        >>> finding = find_probes(trainer, BoringModel(), maximum=2)
        >>> [figures.probes for figures in finding.figures]
        [1, 2]
    """
    for name, thing in (("trainer", trainer), ("model", model), ("datamodule", datamodule)):
        checks.check_package(name, thing)
    if not isinstance(model, LightningModule):
        raise InvalidArgumentError(f"`model` must be a LightningModule, got {type(model).__name__}: pass the module itself.")
    if not isinstance(datamodule, LightningDataModule | None):
        raise InvalidArgumentError(
            f"`datamodule` must be a LightningDataModule, got {type(datamodule).__name__}: pass loaders as `train_dataloaders`."
        )
    callback = next((c for c in trainer.callbacks if isinstance(c, VAMOCallback)), VAMOCallback())  # type: ignore[attr-defined]
    training = callback.settings
    settings = Settings(
        maximum=maximum,
        batches=batches,
        directions=directions or (training.directions if training.directions.learns else GradientSubspaceDirections()),
        mu=training.mu if mu is None else mu,
        difference=difference or training.difference,
        sweep_precision=sweep_precision or training.sweep_precision,
        seed=callback.seed if seed is None else seed,
        control=Auto() if training.never_probes else callback.control,
        accumulation=next((c for c in trainer.callbacks if isinstance(c, GradientAccumulationScheduler)), None),  # type: ignore[attr-defined]
    )
    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise UnsupportedError(
            "`find_probes` does not support ModelParallelStrategy, since it could not undo the sharding of the model: call"
            " `find_probes` with a Trainer on a single device, or with Trainer(strategy='ddp')."
        )
    checks.check_strategy(trainer.strategy, "find_probes")
    data = {
        "train_dataloaders": train_dataloaders,
        "datamodule": datamodule,
        "ckpt_path": ckpt_path,
        "weights_only": weights_only,
    }
    with as_found(trainer, model, datamodule):
        # The callback is handed to other processes and back unchanged, so the settings and figures within it may be frozen.
        finding = compat.launched(trainer, with_vamo(model), _measured, Measurement(settings), data).finding
    if finding is None:
        raise UnsupportedError(
            "The fit ended before its first batch, so there was no gradient to measure: check `limit_train_batches` and"
            " the training data."
        )
    return finding


def _measured(trainer: Trainer, module: LightningModule, measurement: Measurement, data: dict[str, Any]) -> Measurement:
    """Measure within a fit; each process of the fit calls this function."""
    checks.check_module(module, VAMOMixin, "find_probes")
    bar = trainer.progress_bar_callback
    trainer.callbacks = [measurement.callback]  # type: ignore[attr-defined]
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    with ExitStack() as attached:
        attached.enter_context(silent(trainer, module))
        attached.enter_context(checks.one_optimizer(trainer.strategy, "find_probes"))
        attached.enter_context(generators_as_found(trainer))
        attached.enter_context(recording(trainer, lambda recorder, index: None, instead=INSTEAD))
        attached.enter_context(measurement.watch.watching(trainer))
        measurement.bar = attached.enter_context(finder_bar(bar))
        compat.fit_until_ended(trainer, module, **data)
    measurement.bar = measurement.aging = None
    return measurement
