"""Plots the law of VAMO's cost: a sweep takes n(q + 1) evaluations of a sample, and a correction takes time as q times d.

    python examples/benchmarks/cost_law.py docs/images/cost-law   # a minute or two on one core

The number of samples n, of probes q and of parameters d each go over two decades. The clock is that of what this process
computes, on one thread. A straight line of slope one in both pictures is the law.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import lightning as L
import torch
from cost_training import silence
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_vamo import RunObserver, VAMOCallback, VAMOMixin
from lightning_vamo.core.control.correction import Correction
from lightning_vamo.core.control.table import ControlVariate
from lightning_vamo.core.directions import Directions, GradientSubspaceDirections, SphereDirections

BATCH = 16
SAMPLES = (160, 480, 1600, 4800, 16000)
PROBES = (1, 3, 10, 30, 100)
DIMENSIONS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
SOME = {"n": 320, "q": 2, "d": 30_000}
"""What the other two are while one of the three goes over its decades."""


@dataclass(frozen=True)
class Point:
    """A measurement: of a sweep, or of a correction.

    Attributes:
        series: What goes over its decades, and of which directions.
        law: What the cost is proportional to by the law.
        seconds: Processor time.
        evaluations: Forward passes of a batch; 0 for a correction.
    """

    series: str
    law: int
    seconds: float
    evaluations: int = 0


class _Sweeps(RunObserver):
    """Times a sweep by the processor."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.evaluations = 0

    @override
    def on_probing_start(self, trainer: L.Trainer, module: L.LightningModule, purpose: str) -> None:
        self._start = time.process_time()

    @override
    def on_probing_end(self, trainer: L.Trainer, module: L.LightningModule, purpose: str) -> None:
        self.seconds = time.process_time() - self._start

    @override
    def on_sweep(self, trainer: L.Trainer, module: L.LightningModule, sweep: object) -> None:
        self.evaluations = sweep.evaluations  # type: ignore[attr-defined]


class Softmax(VAMOMixin, L.LightningModule):
    """Softmax regression."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(100, 10)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The cross-entropy of a batch."""
        inputs, labels = batch
        return nn.functional.cross_entropy(self.layer(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def swept(samples: int, probes: int, series: str) -> Point:
    """The cost of a sweep.

    Args:
        samples: ``n``.
        probes: ``q``.
        series: Its name in the picture.

    Returns:
        The measurement.
    """
    data = TensorDataset(torch.randn(samples, 100), torch.randint(10, (samples,)))
    watch, callback = _Sweeps(), VAMOCallback(probes, SphereDirections(), alpha="theory", mu=0.01, seed=0, verbose=False)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=1, max_steps=1, accelerator="cpu", callbacks=[callback, watch], **quiet)
    trainer.fit(Softmax(), DataLoader(data, BATCH))
    return Point(series, samples * (1 + probes), watch.seconds, watch.evaluations)


def corrected(family: Directions, probes: int, dimension: int, series: str) -> Point:
    """The cost of a correction: learn from a gradient where the family learns, and subtract from the gradient.

    Args:
        family: The directions.
        probes: ``q``.
        dimension: ``d``, about.
        series: Its name in the picture.

    Returns:
        The measurement.
    """
    side = round(dimension**0.5)
    parameters, generator = [nn.Parameter(torch.zeros(side, side))], torch.Generator().manual_seed(0)
    parameters[0].grad = torch.randn(side, side)
    learner = family.learner(parameters, probes, generator) if family.learns else None
    directions = family.draw(parameters, probes, generator) if learner is None else learner.leading(probes)
    table = ControlVariate(torch.randn(4, probes), torch.ones(4), beta=1e-3)
    correction, times = Correction(parameters, directions, table), []
    repeats = max(2, 1_000_000 // (side * side))
    for _ in range(3):
        start = time.process_time()
        for number in range(repeats):
            if learner is not None:
                learner.observe([parameters[0].grad])
            correction.apply([number % 4], slopes=None if learner is None else learner.slopes)
        times.append((time.process_time() - start) / repeats)
    return Point(series, probes * side * side, median(times))


def measured(scale: float = 1.0) -> tuple[list[Point], list[Point]]:
    """All measurements.

    Args:
        scale: Multiplies the samples and the parameters, for a quick look.

    Returns:
        Those of sweeps, and those of corrections.
    """
    silence()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    swept(160, 1, "warm-up")
    some = max(BATCH, int(SOME["n"] * scale))
    sweeps = [swept(max(BATCH, int(n * scale)), SOME["q"], f"n, with q = {SOME['q']}") for n in SAMPLES]
    sweeps += [swept(some, q, f"q, with n = {some:,}") for q in PROBES]
    corrections = []
    for name, family in (("stored", SphereDirections()), ("learned", GradientSubspaceDirections())):
        sizes = [max(400, int(d * scale)) for d in DIMENSIONS]
        corrections += [corrected(family, SOME["q"], d, f"d, with q = {SOME['q']}, {name}") for d in sizes]
        d = max(400, int(SOME["d"] * scale))
        corrections += [corrected(family, q, d, f"q, with d = {d:,}, {name}") for q in PROBES]
    return sweeps, corrections


def plot(sweeps: list[Point], corrections: list[Point], to: Path) -> None:
    """Draw both pictures, with a line of slope one through each, to ``NAME-1.svg`` and ``NAME-2.svg``.

    Args:
        sweeps: The sweeps.
        corrections: The corrections.
        to: ``NAME``.
    """
    import panels  # matplotlib is for those who draw

    texts = (("A sweep", "n (q + 1)", sweeps), ("A step's learning and correction", "q d", corrections))
    for number, (title, label, points) in enumerate(texts, 1):
        axes = panels.panel((3.7, 3.2))
        for series in dict.fromkeys(point.series for point in points):
            chosen = [point for point in points if point.series == series]
            axes.loglog([point.law for point in chosen], [point.seconds for point in chosen], "o-", ms=3.5, label=series)
        last = max(points, key=lambda point: point.law)
        laws = [min(point.law for point in points), last.law]
        axes.loglog(laws, [last.seconds * law / last.law for law in laws], "k:", label="proportional")
        axes.set(title=title, xlabel=label, ylabel="processor time, seconds")
        axes.legend(fontsize="small")
        panels.save(axes.figure, f"{to}-{number}.svg")


def main() -> None:
    """Measure, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the SVG files to write, without -1.svg and -2.svg")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies n and d, for a quick look")
    parser.add_argument("--json", type=Path, help="file for every single figure")
    arguments = parser.parse_args()
    sweeps, corrections = measured(arguments.scale)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(point) for point in [*sweeps, *corrections]], indent=2))
    plot(sweeps, corrections, arguments.picture)


if __name__ == "__main__":
    main()
