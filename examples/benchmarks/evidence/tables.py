"""The tables of an experiment's runs, in Markdown."""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from examples.benchmarks.evidence.experiment import Experiment
from examples.benchmarks.evidence.runs import CHOSEN_BY, TUNING_SEED, Run, final

AXES: dict[str, Callable[[dict[str, float]], float]] = {
    "steps": lambda point: point["step"],
    "evaluations": lambda point: (point["forward"] + 2 * point["backward"]) / 3,  # in steps of plain training
    "CPU seconds": lambda point: point["cpu_seconds"],
}
"""What the measurements of a run can be set against."""

HARD = "\u00a0"
"""A space at which no line breaks, for the tables of a phone."""

Groups = dict[str, list[Run]]
"""Runs by method, in the order of the experiment's file."""


def load(experiment: Experiment, folder: Path) -> Groups:
    """The reported runs of an experiment.

    Args:
        experiment: The experiment.
        folder: Folder of all runs.

    Returns:
        Runs of the experiment as its file is now: others are left out.

    Raises:
        ValueError: If there are none.
    """
    runs = [json.loads(path.read_text()) for path in sorted((folder / experiment.name).glob("*.json"))]
    runs = [run for run in runs if run["seed"] != TUNING_SEED and run["method"] in experiment.methods]
    runs = [run for run in runs if run["config"] == experiment.config(run["method"], run["lr"], run["seed"])]
    groups = {name: [run for run in runs if run["method"] == name] for name in experiment.methods}
    found = {name: sorted(group, key=lambda run: (run["lr"], run["seed"])) for name, group in groups.items() if group}
    if not found:
        raise ValueError(f"There are no runs of {experiment.name} in {folder}: run them first.")
    return found


def value_at(run: Run, axis: str, budget: float, figure: str) -> float:
    """A measured value when a run has cost so much, interpolated between the two measurements around it.

    Args:
        run: The run.
        axis: What the cost is counted in, a key of ``AXES``.
        budget: How much.
        figure: The value, such as ``"train_loss"``.

    Returns:
        The value; NaN if the run cost less, or has diverged.
    """
    if run["diverged"]:
        return math.nan
    points = [(AXES[axis](point), point[figure]) for point in run["points"]]
    for (before, old), (after, new) in itertools.pairwise(points):
        if before <= budget <= after:
            return old + (new - old) * (budget - before) / (after - before)
    return math.nan


def value_up_to(run: Run, axis: str, budget: float, figure: str) -> float:
    """The mean over the last quarter of a budget, since single measurements jump."""
    return statistics.mean(value_at(run, axis, budget * (1 - share / 48), figure) for share in range(13))


def spread(values: Sequence[float]) -> str:
    """``mean ± standard deviation``, in one piece, to a digit of the latter or five of the mean; a dash for no value."""
    if any(map(math.isnan, values)):
        return "–"
    if not all(map(math.isfinite, values)):
        return "diverged"
    mean, deviation = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
    if not deviation:
        return number(mean)
    digit = -exponent(deviation)
    precise = digit + (f"{deviation:.1e}"[0] == "1")  # a first digit of 1 alone would say too little
    places = max(0, min(precise, 4 - exponent(mean)))
    return f"{mean:.{places}f}{HARD}±{HARD}{deviation:.{places}f}"


def exponent(value: float) -> int:
    """Of the power of ten that a value is a few times of."""
    return math.floor(math.log10(abs(value))) if value else 0


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def percent(value: float) -> str:
    """Of a share; with one decimal, or two digits where it is small."""
    return f"{100 * value:.1f}{HARD}%" if abs(value) >= 0.001 else f"{100 * value:.1g}{HARD}%"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(text: str, path: Path) -> None:
    """Write a table into a file, in a folder that need not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def cost_table(experiment: Experiment, groups: Groups) -> str:
    """What methods reach at their best rates: after all steps, and for the evaluations of the first method.

    Args:
        experiment: The experiment.
        groups: Its runs.

    Returns:
        The table, with columns for rates and numbers of seeds only where methods differ in them.
    """
    plain = next(iter(groups.values()))
    end = plain[0]["points"][-1]
    budget = AXES["evaluations"](end)
    shown = [name for name in (CHOSEN_BY, *experiment.figures) if name in end]
    settings = {"rate": {m: number(runs[0]["lr"]) for m, runs in groups.items()}}
    settings |= {"seeds": {m: str(len(runs)) for m, runs in groups.items()}}
    settings = {name: values for name, values in settings.items() if len(set(values.values())) > 1}  # what is not the same
    header = ["method", *settings, *(f"{words(name)}, {end['step']:.0f} steps" for name in shown)]
    header += [f"{words(shown[-1])}, {budget:.0f} evaluations", "work", "CPU time", "removed"]
    rows = []
    for method, runs in groups.items():
        cells = [method, *(values[method] for values in settings.values())]
        cells += [spread([final(run, name) for run in runs]) for name in shown]
        cells.append(spread([value_up_to(run, "evaluations", budget, shown[-1]) for run in runs]))
        rows.append([*cells, *costs(runs, plain)])
    return table(header, rows)


def costs(runs: Sequence[Run], plain: Sequence[Run]) -> list[str]:
    """The evaluations and the time of a method's runs, as multiples of the plain method's, and the share removed."""
    cells = []
    for axis in ("evaluations", "CPU seconds"):
        mine, theirs = (statistics.mean(AXES[axis](run["points"][-1]) for run in some) for some in (runs, plain))
        cells.append(f"{mine / theirs:.2f}×")
    removed = [run["removed"] for run in runs]
    return [*cells, "–" if None in removed else percent(statistics.mean(removed))]


def words(figure: str) -> str:
    """A figure's name for people."""
    name = figure.replace("train_", "training ").replace("val_", "validation ")
    return name.replace("_", " ")


def rates_table(experiment: Experiment, groups: Groups, figure: str = CHOSEN_BY) -> str:
    """The mean of a figure of each method at each learning rate that was run; its spread is in the plots."""
    rates = [rate for rate in experiment.rates if any(run["lr"] == rate for runs in groups.values() for run in runs)]
    rows = []
    for method, runs in groups.items():
        at = {rate: [final(run, figure) for run in runs if run["lr"] == rate] for rate in rates}
        rows.append([method, *(number(statistics.mean(values)) if values else "" for values in at.values())])
    return table(["method", *(f"{rate:g}" for rate in rates)], rows)


def window_table(experiment: Experiment, groups: Groups) -> str:
    """The best rate of each method, what it reaches there, and how wide the window of good rates is.

    Args:
        experiment: The experiment.
        groups: Its runs.

    Returns:
        The table. A good rate is one whose loss is within a tenth of the least loss of all methods.
    """
    means = {
        method: {
            rate: statistics.mean([final(run, CHOSEN_BY) for run in runs if run["lr"] == rate] or [math.inf])
            for rate in experiment.rates
        }
        for method, runs in groups.items()
    }
    least = min(min(values.values()) for values in means.values())
    shown = [name for name in (CHOSEN_BY, *experiment.figures) if name in next(iter(groups.values()))[0]["points"][-1]]
    chosen = {method: min(values, key=values.__getitem__) for method, values in means.items()}
    at_best = {method: [run for run in groups[method] if run["lr"] == rate] for method, rate in chosen.items()}
    rows = []
    for method, values in means.items():
        best, runs = chosen[method], at_best[method]
        reached = [spread([final(run, name) for run in runs]) for name in shown]
        good = [f"{rate:g}" for rate, value in values.items() if value <= 1.1 * least]
        rows.append([method, f"{best:g}", *reached, ", ".join(good) or "none", *costs(runs, next(iter(at_best.values())))])
    header = ["method", "best rate", *map(words, shown), "good rates"]
    return table([*header, "work", "CPU time", "removed"], rows)
