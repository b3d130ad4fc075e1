"""How much of its old row a step of carried rows should keep: the training loss with each decay, on the tasks of ``auto``.

python -m examples.benchmarks.evidence.decay --data FOLDER --runs FOLDER [--into docs/evidence]    # half an hour on a core
python -m examples.benchmarks.evidence.decay --runs FOLDER --quick                                 # seconds, without data

FOLDER of the data holds ``mnist`` and ``diamonds``. Runs that are kept are not repeated.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from examples.benchmarks.evidence import tables
from examples.benchmarks.evidence.auto import QUICK
from examples.benchmarks.evidence.experiment import Experiment, expanded
from examples.benchmarks.evidence.goals import PLAIN, least_of
from examples.benchmarks.evidence.runs import CHOSEN_BY, final, quiet, run_all

TASKS = (*QUICK, "auto_softmax_2048", "auto_diamonds_adam", "auto_mnist")
"""Experiments: perceptrons and a convex problem, with SGD and with Adam."""

DECAYS = (0.0, 0.3, 0.5, 0.7)


def compared(name: str, *, small: bool) -> Experiment:
    """An experiment with plain training and carried rows, with each decay, as its methods."""
    experiment = Experiment.load(name, small=small)
    arguments = {"probes": 16, "control": {"class_path": "lightning_vamo.Carry"}}
    carry = {
        "method": {"class_path": "VAMOCallback", "init_args": arguments},
        "each": {"method.init_args.control.init_args.decay": list(DECAYS)},
    }
    return replace(experiment, methods={PLAIN: {}, **expanded({"carry,": carry})}, seeds=experiment.seeds[:3])


def rows(experiment: Experiment, groups: tables.Groups, data: str) -> list[list[str]]:
    """The rows of the table: a task at a rate, and for each decay the training loss and the share that was removed.

    Args:
        experiment: The experiment, of :func:`compared`.
        groups: Its runs.
        data: Folder of the data, for the least loss.

    Returns:
        A row for each learning rate.
    """
    least, found = least_of(experiment, data), []
    for rate in experiment.rates:
        plain, *carried = ([run for run in runs if run["lr"] == rate] for runs in groups.values())
        cells = []
        for runs in carried:
            pairs = zip(runs, plain, strict=True)
            losses = [(final(run, CHOSEN_BY) - least) / (final(usual, CHOSEN_BY) - least) for run, usual in pairs]
            removed = statistics.mean(run["removed"] or 0.0 for run in runs)
            cells.append(f"{statistics.mean(losses):.2f}, {100 * removed:.0f} %")
        found.append([experiment.title_at(rate), *cells])
    return found


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=".", help="folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder to keep the runs in")
    parser.add_argument("--into", type=Path, help="folder to write decay.txt into, the table")
    parser.add_argument("--quick", action="store_true", help="two short experiments with one seed")
    options = parser.parse_args()
    quiet()
    body: list[list[str]] = []
    for name in QUICK if options.quick else TASKS:
        experiment = compared(name, small=options.quick)
        run_all(experiment, options.runs, options.data, [""])
        body += rows(experiment, tables.load(experiment, options.runs), options.data)
    text = tables.table(["task", *(f"decay {decay:g}" for decay in DECAYS)], body)
    print(text)
    if options.into is not None:
        tables.write(text, options.into / "decay.txt")


if __name__ == "__main__":
    main()
