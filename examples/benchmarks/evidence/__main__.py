"""Run experiments, write their tables and plots, or show the configuration of one run.

python -m examples.benchmarks.evidence run NAME ... --data FOLDER --runs FOLDER [--small]
python -m examples.benchmarks.evidence report NAME ... --runs FOLDER --into FOLDER
python -m examples.benchmarks.evidence show NAME --method METHOD --lr RATE > run.yaml    # for lightning-vamo fit --config
"""

import argparse
from dataclasses import replace
from pathlib import Path

import yaml

from examples.benchmarks.evidence.experiment import QUIET, Experiment, names
from examples.benchmarks.evidence.report import write
from examples.benchmarks.evidence.runs import quiet, run_all


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "show"])
    parser.add_argument("names", nargs="+", metavar="NAME", choices=[*names(), "all"], help=", ".join([*names(), "all"]))
    parser.add_argument("--data", default=".", help="folder with mnist/, diamonds/ and sst2/")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder to keep the runs in")
    parser.add_argument("--into", type=Path, default=Path("docs/evidence"), help="folder of the tables and plots")
    parser.add_argument("--seeds", type=int, help="how many seeds; by default those of the experiment")
    parser.add_argument("--rates", type=float, nargs="+", help="run these of the experiment's rates")
    parser.add_argument("--small", action="store_true", help="fewer methods, rates, epochs and seeds")
    parser.add_argument("--methods", nargs="+", default=[""], metavar="PART", help="run those whose names contain a part")
    parser.add_argument("--method", help="of the configuration to show")
    parser.add_argument("--lr", type=float, default=0.1, help="of the configuration to show")
    options = parser.parse_args()
    quiet()
    for name in names() if "all" in options.names else options.names:
        experiment = Experiment.load(name, small=options.small)
        if options.seeds is not None:
            experiment = replace(experiment, seeds=tuple(range(options.seeds)))
        if options.rates is not None:
            experiment = replace(experiment, rates=[rate for rate in experiment.rates if rate in options.rates])
        if options.command == "show":
            config = experiment.config(options.method or next(iter(experiment.methods)), options.lr, 0)
            config["trainer"] = {key: value for key, value in config["trainer"].items() if key not in QUIET}
            print(yaml.safe_dump(config, sort_keys=False).replace("{data}", options.data))
        elif options.command == "run":
            run_all(experiment, options.runs, options.data, options.methods)
        else:
            write(experiment, options.runs, options.into)


if __name__ == "__main__":
    main()
