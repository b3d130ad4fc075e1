"""Whether ``VAMOCallback()`` does no harm, and takes the win where there is one, against plain training and each fixed choice.

python examples/benchmarks/auto.py --data FOLDER              # every task, three seeds; an hour or two on one core
python examples/benchmarks/auto.py --data FOLDER --quick      # three tasks, one seed; some minutes

FOLDER holds ``mnist`` (gzipped IDX files of the test images), ``diamonds`` (``diamonds.csv.gz`` of ggplot2), ``sst2``
(``train.tsv``) and ``tinyshakespeare.txt``; scikit-learn's digits and the data with noisy labels need no file. Each run is kept
in a JSON file of its own in ``--out``; runs that are there already are not repeated. The tables have medians over the seeds, of
ratios to plain training with the same seed:

- *evaluations* to plain training's final training loss, a backward pass counted as two forward passes; and processor seconds;
- the training loss at equal evaluations, or its gap to the least loss where that is known, a mean over the last quarter;
- the validation loss at the end.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from examples.benchmarks.auto_tasks import TASKS, Task
from lightning_vamo import VAMOCallback, with_vamo

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
QUICK = ("label noise", "digits", "MNIST, lr 0.1")

METHODS: dict[str, Callable[[], VAMOCallback | None]] = {
    "plain": lambda: None,
    "auto": lambda: VAMOCallback(verbose=False),
    "carry, q = 16": lambda: VAMOCallback(probes=16, control="carry", verbose=False),
    "sweep, q = 1": lambda: VAMOCallback(probes=1, control="replay", verbose=False),
    "sweep, q = 4": lambda: VAMOCallback(probes=4, control="replay", verbose=False),
    "sweep, q = 8": lambda: VAMOCallback(probes=8, control="replay", verbose=False),
}


class Recorder(L.Callback):
    """Measures the loss over all training samples several times per epoch; measurements are not counted.

    Args:
        task: What is trained.
        callback: The method's callback, whose report counts; None for plain training.
    """

    def __init__(self, task: Task, callback: VAMOCallback | None) -> None:
        self.task, self.callback = task, callback
        self.points: list[dict[str, float]] = []
        self.paused = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self.every = max(1, int(trainer.num_training_batches) // self.task.points)
        self.started = time.process_time()

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure, if it is time to."""
        if (batch_idx + 1) % self.every == 0:
            self.record(trainer, module)

    def record(self, trainer: L.Trainer, module: Any) -> None:
        """Measure now."""
        now, step = time.process_time(), trainer.global_step
        report = None if self.callback is None else self.callback.report
        forwards, backwards = (step, step) if report is None else (report.forward_evaluations, report.backward_evaluations)
        loss = module.mean_loss(self.task.train) - self.task.least
        work = (forwards + 2 * backwards) / 3
        self.points.append({"step": step, "work": work, "seconds": now - self.started - self.paused, "loss": loss})
        self.paused += time.process_time() - now


def train(task: Task, method: str, seed: int) -> dict[str, Any]:
    """Train once.

    Args:
        task: What to train.
        method: Which of ``METHODS``.
        seed: Seed of the weights, of the order of the samples, and of the directions.

    Returns:
        The measurements, and what was decided.
    """
    L.seed_everything(seed, verbose=False)
    module, callback = task.module(), METHODS[method]()
    if callback is not None:
        module = with_vamo(module)
    recorder = Recorder(task, callback)
    callbacks = [recorder] if callback is None else [callback, recorder]
    trainer = L.Trainer(accelerator="cpu", max_epochs=task.epochs, callbacks=callbacks, **QUIET)
    trainer.fit(module, task.loader())
    decisions = [] if callback is None else [vars(decided) for decided in callback.report.decisions]
    removed = None if callback is None else callback.report.variance_removed
    return {
        "points": recorder.points,
        "val": module.mean_loss(task.val),
        "decisions": decisions,
        "removed": removed,
    }


def until(points: list[dict[str, float]], loss: float, cost: str) -> float:
    """What it cost until the loss, smoothed over a few measurements, was as low as ``loss``; infinite if it never was."""
    for index in range(len(points)):
        recent = points[max(0, index - 2) : index + 1]
        if statistics.mean(point["loss"] for point in recent) <= loss:
            return points[index][cost]
    return float("inf")


def ended(points: list[dict[str, float]], work: float = float("inf")) -> float:
    """The mean loss over the last quarter of what was done for some work."""
    within = [point for point in points if point["work"] <= work * 1.0001] or points[:1]
    return statistics.mean(point["loss"] for point in within[-max(1, len(within) // 4) :])


def compared(run: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """The figures of a run, as ratios to those of plain training."""
    points, usual = run["points"], plain["points"]
    final = statistics.mean(point["loss"] for point in usual[-3:])
    return {
        "evaluations": until(points, final, "work") / until(usual, final, "work"),
        "seconds": until(points, final, "seconds") / until(usual, final, "seconds"),
        "loss": ended(points, usual[-1]["work"]) / ended(usual),
        "per step": points[-1]["seconds"] / usual[-1]["seconds"] * usual[-1]["step"] / points[-1]["step"],
        "val": run["val"] / plain["val"],
    }


def table(runs: dict[tuple[str, str, int], dict[str, Any]], tasks: list[str], seeds: int) -> None:
    """Print the medians, and what the measurement has chosen."""
    columns = ("evaluations", "seconds", "loss", "per step", "val")
    print(
        "| task | method | evaluations to plain's loss | seconds to it | loss at equal evaluations | time of a step |", end=""
    )
    print(" val loss | decided |\n|---|---|---|---|---|---|---|---|")
    for task in tasks:
        for method in METHODS:
            pairs = [(runs.get((task, method, seed)), runs.get((task, "plain", seed))) for seed in range(seeds)]
            figures = [compared(run, plain) for run, plain in pairs if run is not None and plain is not None]
            if method == "plain" or not figures:
                continue
            cells = [f"{statistics.median(one[column] for one in figures):.3f}" for column in columns]
            said = runs[(task, method, 0)]["decisions"] if (task, method, 0) in runs else []
            decided = ", ".join(f"{one['epoch']}: {one['kind']} {one['probes'] or ''}".strip() for one in said)
            print(f"| {task} | {method} | {' | '.join(cells)} | {decided} |")


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("auto-runs"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=[""], metavar="PART", help="only methods with one of these in the name")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    tasks, seeds = (list(QUICK), 1) if arguments.quick else (arguments.tasks, arguments.seeds)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs: dict[tuple[str, str, int], dict[str, Any]] = {}
    for name in tasks:
        task = None
        for seed in range(seeds):
            for method in METHODS:
                file = arguments.out / f"{name} {method} {seed}.json".replace(" ", "-").replace(",", "")
                if not file.exists() and any(part in method for part in arguments.methods):
                    task = task or TASKS[name](arguments.data)
                    file.write_text(json.dumps(train(task, method, seed)))
                if file.exists():
                    runs[(name, method, seed)] = json.loads(file.read_text())
    table(runs, tasks, seeds)


if __name__ == "__main__":
    main()
