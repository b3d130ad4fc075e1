"""SGD, SGD with momentum, AdamW, and VAMO in three forms, each at its best learning rate, on MNIST and on SST-2.

pip install '.[finetune,benchmarks]'
python -m examples.benchmarks.study mnist --data FOLDER --runs runs/mnist
python -m examples.benchmarks.study sst2 --data FOLDER --runs runs/sst2
python -m examples.benchmarks.study_tables runs/mnist --plot mnist.png

Each run is written to a file of its own, and is not run again: an interrupted study goes on, and with more ``--methods`` or
``--seeds`` it grows. A method is an optimizer, with what VAMO probes along behind a plus sign: ``adamw+learned``.
"""

import argparse
import logging
import math
import warnings
from pathlib import Path

import torch

from examples.benchmarks.study_runs import METHODS, final_loss, kept, search
from examples.benchmarks.study_tasks import GRID, Mnist, Sst2, Task

TUNING_SEED = 100
"""Of the runs that choose a learning rate: none of those that are reported."""


def best_rate(task: Task, method: str, folder: Path) -> float:
    """The learning rate of the grid with the least training loss at the end of a run with a seed of its own."""

    def loss(lr: float) -> float:
        return final_loss(kept(folder / "tuning", task, method, lr, TUNING_SEED, task.epochs, ["train"]))

    return search(loss, GRID, task.starts[method.partition("+")[0]])


def main() -> None:
    """Find the learning rates, and train with them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["mnist", "sst2"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files, or of train.tsv and dev.tsv")
    parser.add_argument("--runs", type=Path, required=True, help="folder to keep the runs in")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of a run")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    task = {"mnist": Mnist, "sst2": Sst2}[options.task](options.data)
    if options.epochs is not None:
        task.epochs = options.epochs
    rates = {method: best_rate(task, method, options.runs) for method in options.methods}
    for seed in options.seeds:  # seed by seed, so that what is there when it is interrupted can be compared
        for method, lr in rates.items():
            result = kept(options.runs, task, method, lr, seed, task.epochs, ["train", "val"])
            if not math.isfinite(final_loss(result)):
                print(f"{method} with seed {seed} diverged")


if __name__ == "__main__":
    main()
