"""Writes the tables and plots of an experiment for the documentation to include."""

from pathlib import Path

from examples.benchmarks.evidence import tables
from examples.benchmarks.evidence.experiment import Experiment


def write(experiment: Experiment, folder: Path, into: Path) -> None:
    """Write ``NAME.txt``, tables in Markdown, ``NAME-rates.txt`` for an experiment over rates, and the panels of a plot.

    Args:
        experiment: The experiment.
        folder: Folder of all runs.
        into: Folder of the files.
    """
    groups = tables.load(experiment, folder)
    over_rates = experiment.tune == "all" and len(experiment.rates) > 1
    text = (tables.window_table if over_rates else tables.cost_table)(experiment, groups)
    tables.write(text, into / f"{experiment.name}.txt")
    if over_rates:
        tables.write(tables.rates_table(experiment, groups), into / f"{experiment.name}-rates.txt")
    if experiment.plot is not None:
        from examples.benchmarks.evidence import plots  # matplotlib is for those who draw

        draw = {"cost": plots.over_cost, "rates": plots.over_rates}[experiment.plot]
        draw(experiment, groups, into / experiment.name)
