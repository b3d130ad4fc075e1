"""The plots of an experiment's runs."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from examples.benchmarks.evidence.experiment import Experiment
from examples.benchmarks.evidence.runs import CHOSEN_BY, Run, final
from examples.benchmarks.evidence.tables import AXES, Groups, words

mpl.use("Agg")
from matplotlib import pyplot as plt  # after the backend: there may be no screen


def banded(axes: Any, costs: Sequence[float], values: Sequence[Sequence[float]], **style: Any) -> None:
    """A line through the means of several runs' values, and a band from the least to the largest."""
    [line] = axes.plot(costs, [statistics.mean(some) for some in values], linewidth=1.3, **style)
    axes.fill_between(costs, [min(some) for some in values], [max(some) for some in values], alpha=0.12, color=line.get_color())


def over_cost(experiment: Experiment, groups: Groups, path: Path) -> None:
    """Figures against steps, evaluations and time, at each method's best rate."""
    names = drawn(experiment, groups)
    figure, axes = panels(len(names), len(AXES), sharex="col", sharey="row")
    for method, runs in groups.items():
        if experiment.shown and method not in experiment.shown:
            continue
        runs = [run for run in runs if not run["diverged"]]
        for row, name in zip(axes, names, strict=True):
            values = list(zip(*([point[name] for point in run["points"]] for run in runs), strict=True))
            for panel, cost in zip(row, AXES.values(), strict=True):
                costs = [statistics.mean(map(cost, points)) for points in zip(*(run["points"] for run in runs), strict=True)]
                banded(panel, costs, values, label=method, linestyle="--" if "VAMO" in method else "-")
    for row, name in zip(axes, names, strict=True):
        row[0].set(ylabel=words(name), yscale="linear" if "accuracy" in name else "log")
    for panel, (unit, cost) in zip(axes[-1], AXES.items(), strict=True):
        panel.set_xlabel("evaluations, in steps of plain training" if unit == "evaluations" else unit)
        ends = [cost(run["points"][-1]) for runs in groups.values() for run in runs]
        panel.set_xlim(0, min(max(ends), 4 * min(ends)))
    finish(figure, axes, path)


def over_rates(experiment: Experiment, groups: Groups, path: Path) -> None:
    """Figures over the learning rate, constant and decayed, and over the length of a step that the rate leads to."""
    names = drawn(experiment, groups)
    figure, axes = panels(len(names), 3, sharex="col", sharey="row")
    for method, runs in groups.items():
        at = {rate: [run for run in runs if run["lr"] == rate] for rate in experiment.rates}
        at = {rate: some for rate, some in at.items() if some and all(math.isfinite(final(run, CHOSEN_BY)) for run in some)}
        name, _, schedule = method.rpartition(", ")
        color, line = "C0" if name.startswith("Adam") else "C1", "--" if "carried" in name else "-"
        style = {"label": name, "linestyle": line, "color": color, "marker": "."}
        for row, shown in zip(axes, names, strict=True):
            values = [[final(run, shown) for run in some] for some in at.values()]
            banded(row[0 if schedule == "constant" else 1], list(at), values, **style)
            if schedule == "constant":
                banded(row[2], [step_length(some) for some in at.values()], values, **style)
    for row, name in zip(axes, names, strict=True):
        least = min(final(run, name) for runs in groups.values() for run in runs)
        row[0].set(yscale="log", ylabel=words(name), ylim=(0.95 * least, 4 * least))
    for panel, title in zip(axes[0], ("constant rate", "cosine decay", "constant rate"), strict=True):
        panel.set(title=title, xscale="log")
    for panel, label in zip(axes[-1], ("learning rate", "learning rate", "length of a step"), strict=True):
        panel.set_xlabel(label)
    finish(figure, axes, path)


def drawn(experiment: Experiment, groups: Groups) -> list[str]:
    """The figures to draw, of those that were measured."""
    measured = next(iter(groups.values()))[0]["points"][0]
    return [name for name in experiment.drawn or (CHOSEN_BY, *experiment.figures) if name in measured]


def panels(rows: int, columns: int, **options: Any) -> tuple[Any, Any]:
    """A figure and its panels."""
    return plt.subplots(rows, columns, figsize=(12, 0.8 + 2.6 * rows), layout="constrained", squeeze=False, **options)


def step_length(runs: Sequence[Run]) -> float:
    """How far the measured steps of the last quarter of some runs move the weights, on average."""
    return statistics.mean(final(run, "step_length") for run in runs)


def finish(figure: Any, axes: Any, path: Path) -> None:
    """Grids, a legend below, and the file."""
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)
    plt.close(figure)
