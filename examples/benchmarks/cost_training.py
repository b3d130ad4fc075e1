"""Short runs of training, plain and with VAMO, and what they are timed with."""

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import lightning as L
import torch
from cost_models import Classifier
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_vamo import VAMOCallback, with_vamo
from lightning_vamo.core import directions
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.schedules import Decision, EfficientProbes

WARM_UP = 2
"""Steps of a run that do not count: the first holds the sweep, and allocates gradients."""


@dataclass(frozen=True)
class Method:
    """What to train with.

    Attributes:
        probes: ``q``, or None for plain Lightning training, without the mixin and the callback.
        family: Name of the family of directions.
        storage: ``"stored"`` or ``"seeded"``, for the families that have the choice.
        control: Where rows come from.
        chooses: Whether the number of probes is chosen by measurement, and 0 was.
        idles: Whether a callback that does nothing is there in VAMO's place: calling its hooks takes Lightning some time.
    """

    probes: int | None = None
    family: str = "SphereDirections"
    storage: str = "stored"
    control: Literal["auto", "replay", "carry", "recompute"] = "auto"
    chooses: bool = False
    idles: bool = False

    def directions(self) -> Directions:
        """The family of directions."""
        family = getattr(directions, self.family)
        if family.learns:
            return family(rank="auto")  # as the callback does by default
        return family(storage=self.storage) if has_storage(self.family) else family()

    def prepare(self, module: Classifier) -> Classifier:
        """The module as this method trains it; the object itself changes."""
        return module if self.probes is None else with_vamo(module)

    def callbacks(self) -> list[L.Callback]:
        """The Trainer's callbacks that make it train so."""
        if self.probes is None:
            return [L.Callback()] if self.idles else []
        family = self.directions()
        alpha = "adaptive" if family.learns else "theory"
        probes = NoneChosen(4) if self.chooses else self.probes
        return [VAMOCallback(probes=probes, directions=family, alpha=alpha, control=self.control, seed=0)]


class NoneChosen(EfficientProbes):
    """Chooses no probes, as the real one does where none pay; what a step then costs does not depend on why."""

    @override
    def decide(self, *arguments: Any, **options: Any) -> Decision:
        super().decide(*arguments, **options)
        self.chosen, self.kind = 0, "nothing"
        return Decision(0, 0.0, 1.0, False, "probes=0, as the benchmark says")


PLAIN = Method()
"""Plain Lightning training."""


def has_storage(family: str) -> bool:
    """Whether the directions of a family can be stored or seeded."""
    return "storage" in inspect.signature(getattr(directions, family)).parameters


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Time that passes, and time that this process computes, which on a busy machine is less."""


class Stopwatch:
    """Times the steps of a training run, and its snapshots apart from them.

    A step is timed from when its batch has been collated to after the last callback's ``on_train_batch_end``, so the batch's
    fingerprint and what VAMO does in any hook of a step count; the loading of the batch does not.

    Args:
        device: Where the module trains.
        clock: Name of the clock.
    """

    def __init__(self, device: torch.device, clock: str) -> None:
        self.steps: list[float] = []
        self.snapshots = 0.0
        """What the snapshots took, by the clock."""
        self.snapshots_wall = 0.0
        """What they took, by the one that the callback's report goes by."""
        self._synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._clock = CLOCKS[clock]
        self._start = self._start_wall = 0.0
        self._runs = False

    @contextmanager
    def reading(self, loader: DataLoader[Any]) -> Iterator[None]:
        """Let a step begin when a loader, in this process, has collated its batch; a sweep's batches come within a step."""
        collate = loader.collate_fn

        def collated(samples: list[Any]) -> Any:
            batch = collate(samples)
            if not self._runs:
                self.start()
            return batch

        loader.collate_fn = collated
        try:
            yield
        finally:
            loader.collate_fn = collate

    def start(self) -> None:
        """A step begins."""
        self._runs = True
        self._synchronize()
        self._start, self._start_wall = self._clock(), time.perf_counter()

    def end(self) -> None:
        """The step has ended."""
        self.steps.append(self.elapsed())
        self._runs = False

    def end_snapshot(self) -> None:
        """The snapshot, before the first step of an epoch, has been taken."""
        self.snapshots += self.elapsed()
        self.snapshots_wall += time.perf_counter() - self._start_wall

    def elapsed(self) -> float:
        """Seconds since the step began."""
        self._synchronize()
        return self._clock() - self._start


class _After(L.Callback):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    @override
    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:  # VAMO's hook, which has just returned, took the snapshot
            self._watch.end_snapshot()

    @override
    def on_train_batch_end(self, *arguments: Any) -> None:
        self._watch.end()


@dataclass(frozen=True)
class Run:
    """What a training run took, in seconds.

    Attributes:
        step: Median over the steps of the last epoch, the sweep's own left out.
        evaluation: A forward pass of the sweep, its share of loading and perturbing included; 0 without a sweep.
        drawing: What the snapshot took beside its sweep and the warm-up: drawing the directions, for the most part.
    """

    step: float
    evaluation: float
    drawing: float


def train(
    module: Classifier, loader: DataLoader[Any], method: Method, device: torch.device, epochs: int = 1, clock: str = "wall"
) -> Run:
    """Train a little.

    Args:
        module: The module, prepared for the method.
        loader: The batches of an epoch.
        method: What to train with.
        device: Where.
        epochs: How many.
        clock: ``"wall"`` or ``"cpu"``.

    Returns:
        What it took.
    """
    callbacks, watch = method.callbacks(), Stopwatch(device, clock)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    accelerator = {"accelerator": "gpu" if device.type == "cuda" else "cpu", "devices": 1}
    trainer = L.Trainer(max_epochs=epochs, callbacks=[*callbacks, _After(watch)], **accelerator, **quiet)
    with watch.reading(loader):
        trainer.fit(module, loader)
    step = median(watch.steps[-(len(watch.steps) // epochs) :][WARM_UP:])
    if not method.probes:
        return Run(step, 0.0, 0.0)
    report = callbacks[0].report
    # The report goes by the wall clock; by the other one, shares of the snapshots are the same.
    sweeps, warm_up = (
        watch.snapshots * seconds / watch.snapshots_wall for seconds in (report.sweep_seconds, report.warmup_seconds)
    )
    evaluations = report.forward_evaluations - report.warmup_evaluations - len(watch.steps)
    evaluation = sweeps / evaluations if evaluations else 0.0
    return Run(step, evaluation, (watch.snapshots - sweeps - warm_up) / max(1, report.snapshots))


def bare_forward(
    module: Classifier, loader: Iterable[Any], evaluations: int, device: torch.device, clock: str = "wall"
) -> float:
    """Time the loop that a sweep is compared with: the same forward passes, and nothing else.

    Like a sweep it loads each batch, moves it to the device, and evaluates its training loss in train mode, without gradients,
    as often as the sweep does. It neither perturbs the weights nor keeps the module and the random state as they were.

    Args:
        module: The plain module.
        loader: The batches.
        evaluations: Forward passes per batch, ``1 + q``.
        device: Where the module is to run.
        clock: ``"wall"`` or ``"cpu"``.

    Returns:
        Seconds per forward pass.
    """
    module.to(device).train()
    watch, losses = Stopwatch(device, clock), []
    watch.start()
    with torch.no_grad():
        for index, loaded in enumerate(loader):
            batch = move_data_to_device(loaded, device)
            losses += [module.training_step(batch, index) for _ in range(evaluations)]
    torch.stack(losses).tolist()
    return watch.elapsed() / len(losses)


def silence() -> None:
    """Drop Lightning's advice on runs that are as short as these on purpose."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
