"""One training run, kept in a file of its own, and the search for a learning rate."""

import hashlib
import json
import logging
import math
import re
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningCLI

from examples.benchmarks.evidence.experiment import Experiment
from examples.benchmarks.evidence.recorder import Recorder
from lightning_vamo import NonFiniteLossError
from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.cli import VAMOCLI

TUNING_SEED = 100
"""Of the runs that choose a learning rate: none of those that are reported."""

CHOSEN_BY = "train_loss"
"""What is to be small at the best learning rate."""

Run = dict[str, Any]


def quiet() -> None:
    """Let only errors be printed beside the figures, and work with one thread, as the second core may have other work."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "transformers", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def train(config: dict[str, Any], data: str, every: int, gradient: bool) -> Run:
    """Train once, by the command's own reading of a configuration.

    Args:
        config: The configuration; without a key ``method`` plain Lightning trains, without the mixin.
        data: Folder that ``{data}`` stands for.
        every: Steps from one measurement to the next.
        gradient: Whether the gradient's norm is measured.

    Returns:
        The measurements, what the corrections removed, and what a choice by measurement has chosen.
    """
    filled = json.loads(json.dumps(config).replace("{data}", data))
    cli = (VAMOCLI if "method" in config else LightningCLI)(args=filled, run=False, save_config_callback=None)
    recorder = Recorder(cli.datamodule.parts, every, gradient)
    cli.trainer.callbacks.append(recorder)
    diverged = False
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    except NonFiniteLossError:
        diverged = True
    methods = [callback for callback in cli.trainer.callbacks if isinstance(callback, MethodCallback)]
    return {
        "diverged": diverged or not math.isfinite(recorder.points[-1]["train_loss"]),
        "removed": methods[0].report.variance_removed if methods else None,
        "points": recorder.points,
        "decisions": [vars(decided) for decided in methods[0].report.decisions] if methods else [],
    }


def kept(experiment: Experiment, method: str, lr: float, seed: int, folder: Path, data: str) -> Run:
    """A run from its file, if it has been run before; else run it now and write the file.

    Args:
        experiment: The experiment.
        method: Name of the method.
        lr: Learning rate.
        seed: Seed of the run.
        folder: Folder of all runs.
        data: Folder of the data.

    Returns:
        The run. A file with another configuration than the present one is not taken: its name holds the configuration's digest.
    """
    config = experiment.config(method, lr, seed)
    settings = [config, experiment.every]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.=+-]+", "-", method).strip("-")
    path = folder / experiment.name / f"{name}-lr{lr:g}-seed{seed}-{digest}.json"
    if not path.exists():
        run = train(config, data, experiment.every, "gradient_norm" in experiment.figures)
        run |= {"method": method, "lr": lr, "seed": seed, "config": config}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run))
        last = run["points"][-1]
        told = f"training loss {final(run, CHOSEN_BY):.5g}, {last['cpu_seconds']:.1f} s"
        print(f"{experiment.name}: {method}, rate {lr:g}, seed {seed}: {told}", flush=True)
    return json.loads(path.read_text())


def final(run: Run, figure: str) -> float:
    """A figure at the end of a run, the mean over the last quarter of the steps; infinite for a run that diverged."""
    if run["diverged"]:
        return math.inf
    points = run["points"]
    return statistics.mean(point[figure] for point in points if point["step"] > 0.75 * points[-1]["step"])


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


def run_all(experiment: Experiment, folder: Path, data: str, parts: Sequence[str]) -> list[Run]:
    """All runs of an experiment that are reported, seed by seed, so that an interrupted one can be compared.

    Args:
        experiment: The experiment.
        folder: Folder of all runs.
        data: Folder of the data.
        parts: Only methods are run whose names are one of these, or contain one that is no name.

    Returns:
        The runs.
    """
    whole = [part for part in parts if part in experiment.methods]
    chosen = [m for m in experiment.methods if m in whole or any(part in m for part in parts if part not in whole)]
    rates = {method: _rates(experiment, method, folder, data) for method in chosen}
    cells = [(method, lr, seed) for seed in experiment.seeds for method, some in rates.items() for lr in some]
    return [kept(experiment, method, lr, seed, folder, data) for method, lr, seed in cells]


def _rates(experiment: Experiment, method: str, folder: Path, data: str) -> list[float]:
    if experiment.tune == "all":
        return experiment.rates
    start = experiment.begins(method)
    if experiment.tune == "start":
        return [start]

    def tried(lr: float) -> float:
        return final(kept(experiment, method, lr, TUNING_SEED, folder, data), CHOSEN_BY)

    return [search(tried, experiment.rates, start)]
