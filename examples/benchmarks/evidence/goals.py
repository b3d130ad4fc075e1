"""The goals of ``VAMOCallback()``, against plain training and each fixed choice with the same seeds, and whether they are met.

Figures are medians over the seeds. A loss is a mean over the last quarter of what it cost. Where an experiment has a ``gap``,
losses are gaps to the least training loss, except in the comparison with the best fixed choice.
"""

import itertools
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lightning.pytorch.cli import LightningCLI

from examples.benchmarks.evidence import tables
from examples.benchmarks.evidence.experiment import Experiment
from examples.benchmarks.evidence.networks import data_loss
from examples.benchmarks.evidence.recorder import penalty
from examples.benchmarks.evidence.runs import CHOSEN_BY, Run, final
from examples.benchmarks.least import least_loss

PLAIN, AUTO, BY_EVALUATIONS, NOTHING = "plain", "auto", "auto by evaluations", "probes=0"
EVALUATIONS, SECONDS = "evaluations", "CPU seconds"

MOST_EVALUATIONS = 1.02
"""The most evaluations to plain training's final loss, relative to plain training's."""

MOST_SECONDS = {0.010: 1.06, 0.0: 1.25}
"""The same for seconds, by the least time of a plain step, in seconds."""

MOST_OF_BEST = 1.05
"""The largest loss at equal cost, relative to that of the best fixed choice."""


@dataclass(frozen=True)
class Goal:
    """A figure, and the most that it may be.

    Attributes:
        figure: What was measured.
        most: The goal.
    """

    figure: float
    most: float

    @property
    def met(self) -> bool:
        """Whether the figure, as it is printed, is not above the goal."""
        return round(self.figure, 2) <= self.most

    def __str__(self) -> str:
        """The figure, with the goal where that is missed."""
        return f"{self.figure:.2f}" if self.met else f"**{self.figure:.2f}** (> {self.most:.2f})"


@dataclass(frozen=True)
class Judged:
    """One task at one rate: what was measured, and the goals for it.

    Attributes:
        title: The task.
        seeds: How many seeds.
        step: Processor seconds of a plain step.
        goals: By the column of the table.
        chosen: What the run with the first seed has chosen, in turn.
    """

    title: str
    seeds: int
    step: float
    goals: dict[str, Goal]
    chosen: str

    @property
    def missed(self) -> list[str]:
        """The columns of the goals that are missed."""
        return [name for name, goal in self.goals.items() if not goal.met]


def at_one_speed(groups: dict[str, dict[int, Run]]) -> dict[str, dict[int, Run]]:
    """Runs with the processor seconds that they would have taken on a machine of one speed.

    The speed of a shared machine changes from second to second, and runs follow each other. So the seconds between two
    measurements are divided by the mean time of the fixed piece of work that was timed at both, and multiplied by the median of
    all such times.

    Args:
        groups: Runs by method and seed.

    Returns:
        The same, with other ``cpu_seconds``; the same runs, if no piece of work was timed.
    """
    known = [point.get("yardstick") for runs in groups.values() for run in runs.values() for point in run["points"]]
    if None in known:
        return groups
    typical = statistics.median(known)

    def scaled(run: Run) -> Run:
        points, seconds = [run["points"][0]], run["points"][0]["cpu_seconds"]
        for before, after in itertools.pairwise(run["points"]):
            speed = (before["yardstick"] + after["yardstick"]) / 2 / typical
            seconds += (after["cpu_seconds"] - before["cpu_seconds"]) / speed
            points.append({**after, "cpu_seconds": seconds})
        return {**run, "points": points}

    return {name: {seed: scaled(run) for seed, run in runs.items()} for name, runs in groups.items()}


def cost_of(run: Run, axis: str, loss: float) -> float:
    """What it cost until the mean over a quarter of the run's measurements was as low as a loss; infinite if it never was."""
    points = run["points"]
    window = max(1, len(points) // 4)
    for index in range(window, len(points) + 1):
        if statistics.mean(point[CHOSEN_BY] for point in points[index - window : index]) <= loss * (1 + 1e-9):
            return tables.AXES[axis](points[index - 1])
    return math.inf


def slower(run: Run, plain: Run, axis: str) -> float:
    """The cost to plain training's final loss, or to the run's own where that is higher, relative to plain training's cost."""
    window = max(1, len(plain["points"]) // 4)
    loss = max(statistics.mean(point[CHOSEN_BY] for point in each["points"][-window:]) for each in (run, plain))
    return cost_of(run, axis, loss) / cost_of(plain, axis, loss)


def losses(runs: Sequence[Run], axis: str, least: float) -> list[float]:
    """The losses of runs at equal cost: at the cost of the run that cost least."""
    budget = min(tables.AXES[axis](run["points"][-1]) for run in runs)
    return [tables.value_up_to(run, axis, budget * (1 - 1e-9), CHOSEN_BY) - least for run in runs]


def least_of(experiment: Experiment, data: str) -> float:
    """The least training loss of an experiment with a ``gap``; else 0."""
    if not experiment.gap:
        return 0.0
    config = experiment.config(PLAIN, experiment.rates[0], 0)
    filled = json.loads(json.dumps(config).replace("{data}", data))
    cli = LightningCLI(args=filled, run=False, save_config_callback=None)
    module, [(inputs, targets)] = cli.model.double(), cli.datamodule.parts["train"]
    inputs = inputs.double()
    return least_loss(module, lambda: data_loss(module(inputs), targets) + penalty(module), config["model"]["init_args"]["l2"])


def judged(experiment: Experiment, groups: tables.Groups, data: str) -> Iterator[Judged]:
    """Judge the runs of an experiment, rate by rate.

    Args:
        experiment: The experiment.
        groups: Its runs.
        data: Folder of the data, for the least loss.

    Yields:
        The goals for each rate of which there are runs.
    """
    least = least_of(experiment, data)
    for rate in experiment.rates:
        at = {name: {run["seed"]: run for run in runs if run["lr"] == rate} for name, runs in groups.items()}
        at = at_one_speed(at)
        seeds = sorted(set(at.get(AUTO, {})) & set(at.get(PLAIN, {})))
        if seeds:
            yield replace(_judged(experiment.goals, at, seeds, least), title=experiment.title_at(rate))


def _judged(asked: dict[str, float], at: dict[str, dict[int, Run]], seeds: list[int], least: float) -> Judged:
    auto, plain = ([at[name][seed] for seed in seeds] for name in (AUTO, PLAIN))
    pairs = list(zip(auto, plain, strict=True))
    step = statistics.median(run["points"][-1]["cpu_seconds"] / run["points"][-1]["step"] for run in plain)
    most = {EVALUATIONS: MOST_EVALUATIONS, SECONDS: next(most for above, most in MOST_SECONDS.items() if step >= above)}
    goals = {f"{axis} to plain's loss": Goal(_median([slower(*pair, axis) for pair in pairs]), most[axis]) for axis in most}
    goals["validation loss"] = _validation(auto, plain)
    for axis in most:
        ratios = [mine / usual for mine, usual in (losses(pair, axis, least) for pair in pairs)]
        goals[f"loss at equal {axis}"] = Goal(_median(ratios), asked.get(axis, math.inf))
    for axis in most:
        goals[f"of the best's loss at equal {axis}"] = _of_the_best(at, axis, AUTO)
    if at.get(BY_EVALUATIONS):
        goals[f'the same at equal {EVALUATIONS}, with cost="evaluations"'] = _of_the_best(at, EVALUATIONS, BY_EVALUATIONS)
    return Judged("", len(seeds), step, goals, _chosen(auto[0]))


def _of_the_best(at: dict[str, dict[int, Run]], axis: str, judged: str) -> Goal:
    """The mean loss at equal cost, never the gap, relative to the least mean loss of the fixed choices."""
    # Plain training, which other columns compare with, stands for `probes=0` only where that was not run.
    others = {AUTO, BY_EVALUATIONS, PLAIN if at.get(NOTHING) else NOTHING}
    methods = [name for name, runs in at.items() if runs and (name == judged or name not in others)]
    seeds = sorted(set.intersection(*(set(at[name]) for name in methods)))
    found = [losses([at[name][seed] for name in methods], axis, 0.0) for seed in seeds]
    means = dict(zip(methods, map(statistics.mean, zip(*found, strict=True)), strict=True))
    return Goal(means[judged] / min(mean for name, mean in means.items() if name != judged), MOST_OF_BEST)


def _validation(auto: Sequence[Run], plain: Sequence[Run]) -> Goal:
    """The mean validation loss relative to plain training's, which may be larger by the deviation of plain training's seeds."""
    mine, usual = ([final(run, "val_loss") for run in runs] for runs in (auto, plain))
    mean, deviation = statistics.mean(usual), statistics.stdev(usual) if len(usual) > 1 else 0.0
    return Goal(statistics.mean(mine) / mean, round(1 + deviation / mean, 2))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _chosen(run: Run) -> str:
    kinds = {"nothing": "nothing", "look": "a look", "carry": "carried rows", "sweep": "a sweep"}
    said = [f"{one['epoch']}: {kinds[one['kind']]}" for one in run["decisions"]]
    return ", ".join(said if len(said) < 8 else [*said[:6], "…"]) or "nothing"


def table(rows: Sequence[Judged]) -> str:
    """The goals in Markdown, a row for each task and rate; missed goals are in bold, with what they are."""
    columns = list(dict.fromkeys(column for row in rows for column in row.goals))
    header = ["task", "seeds", "a plain step", *columns, "chosen in each epoch, first seed", "missed"]
    body = [
        [
            row.title,
            str(row.seeds),
            f"{1000 * row.step:.1f} ms",
            *(str(row.goals.get(column, "–")) for column in columns),
            row.chosen,
            ", ".join(row.missed) or "none",
        ]
        for row in rows
    ]
    return tables.table(header, body)
