"""One training run of the study, kept in a file of its own, and the search for a learning rate."""

import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from examples.benchmarks.study_tasks import Task
from lightning_vamo import NonFiniteLossError, VAMOCallback, with_vamo
from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
METHODS = ("sgd", "momentum", "adamw", "sgd+random", "sgd+learned", "sgd+carried")
"""An optimizer, and behind the plus sign what VAMO probes along; without it the run is plain Lightning's."""


def vamo(task: Task, probing: str) -> VAMOCallback:
    """The callback of a method.

    Args:
        task: What is trained.
        probing: ``"random"``, ``"learned"`` or ``"carried"``.

    Returns:
        The callback.
    """
    if probing == "random":
        return VAMOCallback(probes=task.probes, directions=SphereDirections(), alpha="theory")
    learned = {"directions": GradientSubspaceDirections(warmup_batches=task.warmup), "alpha": "adaptive"}
    carried = {"control": "carry"} if probing == "carried" else {}
    return VAMOCallback(probes=task.probes, **learned, **carried)


class Recorder(L.Callback):
    """Measures the module every few steps, with what the training has cost until then; the measurements are not counted.

    Args:
        task: What is trained.
        parts: Parts of the data to measure on.
        callback: The VAMOCallback, if there is one.
    """

    def __init__(self, task: Task, parts: Sequence[str], callback: VAMOCallback | None) -> None:
        self.task, self.parts, self.callback = task, parts, callback
        self.points: list[dict[str, float]] = []
        self.clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
        self.paused = dict.fromkeys(self.clocks, 0.0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clocks. The first sweep and the warm-up come later, with the first batch."""
        self.started = {name: clock() for name, clock in self.clocks.items()}
        self.record(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        """Measure, if it is time to, and stop a run that has diverged."""
        if trainer.global_step % self.task.every == 0:
            self.record(trainer, module)
            trainer.should_stop |= not math.isfinite(self.points[-1]["train_loss"])

    def record(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure now."""
        now = {name: clock() for name, clock in self.clocks.items()}
        point = {name: now[name] - self.started[name] - self.paused[name] for name in now}
        step = trainer.global_step
        report = None if self.callback is None else self.callback.report
        point |= {
            "step": step,
            "forward": step if report is None else report.forward_evaluations,
            "backward": step if report is None else report.backward_evaluations,
        }
        for part in self.parts:
            point[f"{part}_loss"], point[f"{part}_accuracy"] = self.task.measure(module, part)
        self.points.append(point)
        for name, clock in self.clocks.items():
            self.paused[name] += clock() - now[name]


def train(task: Task, method: str, lr: float, seed: int, epochs: int, parts: Sequence[str]) -> dict[str, Any]:
    """Train once.

    Args:
        task: What to train.
        method: One such as those in ``METHODS``.
        lr: Learning rate.
        seed: Seed of the weights, the order of the data, and the directions.
        epochs: How long.
        parts: Parts of the data to measure on.

    Returns:
        The settings, the measurements, and what the corrections removed.
    """
    L.seed_everything(seed, verbose=False)
    optimizer, _, probing = method.partition("+")
    module = task.module(optimizer, lr)
    callback = vamo(task, probing) if probing else None
    recorder = Recorder(task, parts, callback)
    callbacks = [recorder] if callback is None else [callback, recorder]  # the recorder's clock sees all of the callback's step
    trainer = L.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **QUIET)
    diverged = False
    try:
        trainer.fit(module if callback is None else with_vamo(module), task.loader)
    except NonFiniteLossError:
        diverged = True
    return {
        "method": method,
        "lr": lr,
        "seed": seed,
        "epochs": epochs,
        "diverged": diverged or not math.isfinite(recorder.points[-1]["train_loss"]),
        "removed": None if callback is None else callback.report.variance_removed,
        "points": recorder.points,
    }


def kept(folder: Path, task: Task, method: str, lr: float, seed: int, epochs: int, parts: Sequence[str]) -> dict[str, Any]:
    """The same from its file, if it has been run before; else run it now and write the file."""
    path = folder / f"{method}-lr{lr:g}-seed{seed}-epochs{epochs}.json"
    if not path.exists():
        result = train(task, method, lr, seed, epochs, parts)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        last = result["points"][-1]
        print(f"{path.stem}: train loss {last['train_loss']:.4f}, {last['cpu_seconds']:.0f} s", flush=True)
    return json.loads(path.read_text())


def final_loss(result: dict[str, Any]) -> float:
    """The training loss at the end, the mean of the last three measurements; infinite for a run that diverged."""
    if result["diverged"]:
        return math.inf
    return statistics.mean(point["train_loss"] for point in result["points"][-3:])


def search(loss: Callable[[float], float], grid: Sequence[float], start: float) -> float:
    """The best learning rate: from a start on to the better neighbour, until both neighbours are worse.

    Args:
        loss: What to minimise, asked once for each rate.
        grid: The rates, in order.
        start: One of them.

    Returns:
        The rate.
    """
    losses: dict[int, float] = {}
    best = grid.index(start)
    while True:
        near = [index for index in (best, best - 1, best + 1) if 0 <= index < len(grid)]
        losses |= {index: loss(grid[index]) for index in near if index not in losses}
        better = min(near, key=losses.__getitem__)
        if better == best:
            return grid[best]
        best = better
