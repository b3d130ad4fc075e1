"""The tables and the plot of the runs that study.py has kept.

python -m examples.benchmarks.study_tables runs/mnist --plot docs/images/study-mnist.png
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks.study_runs import final_loss

AXES = {
    "steps": lambda point: point["step"],
    "evaluations": lambda point: (point["forward"] + 2 * point["backward"]) / 3,  # in steps of plain training
    "CPU seconds": lambda point: point["cpu_seconds"],
    "wall-clock seconds": lambda point: point["seconds"],
}
"""What the measurements of a run can be set against."""

Run = dict[str, Any]


def place(method: str) -> tuple[bool, int, str]:
    """Where a method stands in the tables: plain training first."""
    optimizer, _, probing = method.partition("+")
    return bool(probing), ["sgd", "momentum", "adamw"].index(optimizer), probing


def load(folder: Path) -> dict[str, list[Run]]:
    """The runs of a folder by method, plain training first.

    Args:
        folder: Where they are kept.

    Returns:
        One list for each method, seed by seed.

    Raises:
        ValueError: If a method has runs with two learning rates, or there are no runs.
    """
    runs = sorted((json.loads(path.read_text()) for path in folder.glob("*.json")), key=lambda run: run["seed"])
    if not runs:
        raise ValueError(f"There are no runs in {folder}: run examples.benchmarks.study first.")
    names = sorted({run["method"] for run in runs}, key=place)
    methods = {name: [run for run in runs if run["method"] == name] for name in names}
    for name, group in methods.items():
        if len({(run["lr"], run["epochs"]) for run in group}) > 1:
            raise ValueError(f"{name} has runs of several learning rates or lengths in {folder}: keep those of one.")
    return methods


def value_at(run: Run, axis: str, budget: float, name: str) -> float:
    """A measured value when a run has cost so much, interpolated between the two measurements around it.

    Args:
        run: The run.
        axis: What the cost is counted in, a key of ``AXES``.
        budget: How much.
        name: The value, such as ``"train_loss"``.

    Returns:
        The value; NaN if the run cost less, or has diverged.
    """
    if run["diverged"]:
        return math.nan
    points = [(AXES[axis](point), point[name]) for point in run["points"]]
    for (before, old), (after, new) in itertools.pairwise(points):
        if before <= budget <= after:
            return old + (new - old) * (budget - before) / (after - before)
    return math.nan


def value_up_to(run: Run, axis: str, budget: float, name: str) -> float:
    """The mean over the last quarter of a budget, since single measurements jump."""
    return statistics.mean(value_at(run, axis, budget * (1 - share / 48), name) for share in range(13))


def budgets(methods: dict[str, list[Run]]) -> dict[str, float]:
    """How much the cheapest run costs, in each unit: so far all methods can be compared."""
    runs = [run for group in methods.values() for run in group if not run["diverged"]]
    return {axis: min(cost(run["points"][-1]) for run in runs) for axis, cost in AXES.items()}


def mean_and_spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """``mean ± standard deviation``."""
    if any(math.isnan(value) for value in values):
        return "diverged"
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{form(statistics.mean(values))} ± {form(spread)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def values_table(methods: dict[str, list[Run]], name: str, form: Callable[[float], str]) -> str:
    """What the methods reach at equal cost, in each unit."""
    limits = budgets(methods)
    header = ["method", "learning rate", *(f"{limit:.4g} {axis}" for axis, limit in limits.items())]
    rows = []
    for method, runs in methods.items():
        values = [[value_up_to(run, axis, limit, name) for run in runs] for axis, limit in limits.items()]
        cells = [mean_and_spread(column, form) for column in values]
        rows.append([method, f"{runs[0]['lr']:g}", *cells])
    return table(header, rows)


def cost_table(methods: dict[str, list[Run]]) -> str:
    """What all steps of a run cost, and what the corrections removed."""
    header = ["method", "forward evaluations", "backward evaluations", "CPU seconds", "wall-clock seconds", "removed"]
    rows = []
    for method, runs in methods.items():
        ends = [run["points"][-1] for run in runs]
        counts = [f"{statistics.mean(end[name] for end in ends):.0f}" for name in ("forward", "backward")]
        clocks = [
            mean_and_spread([end[name] for end in ends], lambda value: f"{value:.3g}") for name in ("cpu_seconds", "seconds")
        ]
        removed = [run["removed"] for run in runs]
        share = "–" if None in removed else f"{100 * statistics.mean(removed):.2g} %"
        rows.append([method, *counts, *clocks, share])
    return table(header, rows)


def rates_table(folder: Path) -> str:
    """Of the runs that chose a learning rate: the training loss at the end, and the share that corrections removed."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    rates = sorted({run["lr"] for run in runs})
    cells = {}
    for run in runs:
        share = "" if run["removed"] is None else f" ({100 * run['removed']:.2g} %)"
        cells[run["method"], run["lr"]] = "diverged" if run["diverged"] else f"{final_loss(run):.3g}{share}"
    methods = sorted({run["method"] for run in runs}, key=place)
    return table(
        ["method", *(f"{lr:g}" for lr in rates)], [[name, *(cells.get((name, lr), "") for lr in rates)] for name in methods]
    )


# Of lines, by what stands after the plus sign of a method.
STYLES = {"": "-", "random": ":", "learned": "--", "carried": "-."}


def plot(methods: dict[str, list[Run]], path: Path) -> None:
    """Training loss and validation accuracy against each unit of cost: the mean over seeds, and their range."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, len(AXES), figsize=(13, 5.6), layout="constrained", sharey="row")
    for method, runs in methods.items():
        runs = [run for run in runs if not run["diverged"]]
        for row, name in zip(axes, ("train_loss", "val_accuracy"), strict=True):
            values = list(zip(*([point[name] for point in run["points"]] for run in runs), strict=True))
            for axis, cost in zip(row, AXES.values(), strict=True):
                costs = [statistics.mean(map(cost, points)) for points in zip(*(run["points"] for run in runs), strict=True)]
                means = [statistics.mean(v) for v in values]
                [line] = axis.plot(costs, means, STYLES[method.partition("+")[2]], label=method, linewidth=1.3)
                axis.fill_between(costs, [min(v) for v in values], [max(v) for v in values], alpha=0.12, color=line.get_color())
    for axis, unit in zip(axes[1], AXES, strict=True):
        axis.set_xlabel("evaluations, in steps of plain training" if unit == "evaluations" else unit)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    axes[0, 0].set(ylabel="training loss", yscale="log")
    lowest = min(
        run["points"][1]["val_accuracy"] for runs in methods.values() for run in runs
    )  # before it there is nothing to see
    axes[1, 0].set(ylabel="validation accuracy", ylim=(max(lowest, 0.5), None))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(methods), 6))
    figure.savefig(path, dpi=75)


def main() -> None:
    """Print the tables, and draw the plot where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that study.py has written to")
    parser.add_argument("--plot", type=Path, help="file to write, .svg or .png")
    options = parser.parse_args()
    methods = load(options.runs)
    print("Training loss\n\n" + values_table(methods, "train_loss", lambda value: f"{value:.3g}"))
    print("\nValidation accuracy\n\n" + values_table(methods, "val_accuracy", lambda value: f"{100 * value:.1f}"))
    print("\nCost of all steps\n\n" + cost_table(methods))
    print("\nThe choice of the learning rate\n\n" + rates_table(options.runs / "tuning"))
    if options.plot:
        plot(methods, options.plot)


if __name__ == "__main__":
    main()
