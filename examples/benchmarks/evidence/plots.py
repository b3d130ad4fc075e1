"""The plots of an experiment's runs, each panel in a file of its own, so that a phone can stack them."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks import panels
from examples.benchmarks.evidence.experiment import Experiment
from examples.benchmarks.evidence.runs import CHOSEN_BY, Run, final
from examples.benchmarks.evidence.tables import AXES, Groups, words


def banded(axes: Any, costs: Sequence[float], values: Sequence[Sequence[float]], **style: Any) -> None:
    """A line through the means of several runs' values, and a band from the least to the largest."""
    [line] = axes.plot(costs, [statistics.mean(some) for some in values], linewidth=1.3, **style)
    axes.fill_between(costs, [min(some) for some in values], [max(some) for some in values], alpha=0.12, color=line.get_color())


def over_cost(experiment: Experiment, groups: Groups, path: Path) -> None:
    """Figures against steps, evaluations and time, at each method's best rate."""
    names = drawn(experiment, groups)
    rows = [[panels.panel() for _ in names] for _ in AXES]
    for method, runs in groups.items():
        if experiment.shown and method not in experiment.shown:
            continue
        runs = [run for run in runs if not run["diverged"]]
        style = {"label": method, "linestyle": "--" if "VAMO" in method else "-"}
        for row, cost in zip(rows, AXES.values(), strict=True):
            costs = [statistics.mean(map(cost, points)) for points in zip(*(run["points"] for run in runs), strict=True)]
            for axes, name in zip(row, names, strict=True):
                values = list(zip(*([point[name] for point in run["points"]] for run in runs), strict=True))
                banded(axes, costs, values, **style)
    for row, (unit, cost) in zip(rows, AXES.items(), strict=True):
        ends = [cost(run["points"][-1]) for runs in groups.values() for run in runs]
        label = "evaluations, in steps of plain training" if unit == "evaluations" else unit
        for axes, name in zip(row, names, strict=True):
            axes.set(xlabel=label, ylabel=words(name), yscale="linear" if "accuracy" in name else "log")
            axes.set_xlim(0, min(max(ends), 4 * min(ends)))
    save(rows, path)


def over_rates(experiment: Experiment, groups: Groups, path: Path) -> None:
    """Figures over the learning rate, constant and decayed, and over the length of a step that the rate leads to."""
    names = drawn(experiment, groups)
    labels = "learning rate, constant", "learning rate, cosine decay", "length of a step, constant rate"
    rows = [[panels.panel() for _ in names] for _ in labels]
    for method, runs in groups.items():
        at = {rate: [run for run in runs if run["lr"] == rate] for rate in experiment.rates}
        at = {rate: some for rate, some in at.items() if some and all(math.isfinite(final(run, CHOSEN_BY)) for run in some)}
        name, _, schedule = method.rpartition(", ")
        color, line = "C0" if name.startswith("Adam") else "C1", "--" if "carried" in name else "-"
        style = {"label": name, "linestyle": line, "color": color, "marker": "."}
        for column, shown in enumerate(names):
            values = [[final(run, shown) for run in some] for some in at.values()]
            banded(rows[0 if schedule == "constant" else 1][column], list(at), values, **style)
            if schedule == "constant":
                banded(rows[2][column], [step_length(some) for some in at.values()], values, **style)
    for row, label in zip(rows, labels, strict=True):
        for axes, name in zip(row, names, strict=True):
            least = min(final(run, name) for runs in groups.values() for run in runs)
            axes.set(xscale="log", yscale="log", xlabel=label, ylabel=words(name), ylim=(0.95 * least, 4 * least))
    save(rows, path)


def drawn(experiment: Experiment, groups: Groups) -> list[str]:
    """The figures to draw, of those that were measured."""
    measured = next(iter(groups.values()))[0]["points"][0]
    return [name for name in experiment.drawn or (CHOSEN_BY, *experiment.figures) if name in measured]


def step_length(runs: Sequence[Run]) -> float:
    """How far the measured steps of the last quarter of some runs move the weights, on average."""
    return statistics.mean(final(run, "step_length") for run in runs)


def save(rows: Sequence[Sequence[Any]], path: Path) -> None:
    """Write the panels to ``NAME-1.svg``, ``NAME-2.svg`` and so on, row by row, and what the lines are to ``NAME-legend.svg``.

    Args:
        rows: Axes, which all have the same lines. Those of a column share their limits.
        path: ``NAME``.
    """
    for column in zip(*rows, strict=True):
        limits = [axes.get_ylim() for axes in column]
        for axes in column:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for number, axes in enumerate((axes for row in rows for axes in row), 1):
        panels.save(axes.figure, f"{path}-{number}.svg")
    panels.save(panels.legend(rows[0][0]), f"{path}-legend.svg")
