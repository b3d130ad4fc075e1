"""Prints what an epoch costs each of 1, 2, 4 and 8 processes of DDP on a CPU, plain and with VAMO.

    python examples/benchmarks/cost_ranks.py    # three minutes on two cores

The law says that P processes divide the work of an epoch by P: of its steps, and of a sweep, whose samples are dealt out to the
processes as those of the steps are. Times are those that a process computes, on one thread, so there may be more processes than
cores: a process that waits for another computes nothing. They are relative to a forward pass that the same process makes just
before, since cores are slower where others are busy too.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import lightning as L
import torch
from cost_models import Classifier
from cost_tables import table
from cost_training import silence
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_vamo import RunObserver, VAMOCallback, with_vamo

RANKS = (1, 2, 4, 8)
SAMPLES, BATCH, INPUTS, WIDTH, CLASSES, PROBES = 16384, 64, 256, 1024, 10, 4
BARE = 128
"""Forward passes that the others are measured by."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch cost each process, in the mean over the processes.

    Attributes:
        ranks: How many processes.
        probes: ``q``; 0 for plain training.
        steps: Training steps of the epoch.
        evaluations: Forward passes of the sweep in each process.
        bare: Seconds of a forward pass without a gradient, timed in every process just before the epoch.
        stepping: Seconds of the epoch less those of the sweep.
        sweeping: Seconds of the sweep.
    """

    ranks: int
    probes: int
    steps: int
    evaluations: int
    bare: float
    stepping: float
    sweeping: float

    @property
    def step(self) -> float:
        """What a step took, in bare forward passes."""
        return self.stepping / self.steps / self.bare

    @property
    def forward(self) -> float:
        """What a forward pass of the sweep took, in bare forward passes."""
        return self.sweeping / self.evaluations / self.bare


class Watch(RunObserver):
    """Writes to a file of each process what its last epoch cost.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, float] = {}
        self._epoch = self._probing = 0.0

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        torch.set_num_threads(1)  # Lightning gives each process its share of the cores

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        batch = [torch.randn(BATCH, INPUTS), torch.randint(CLASSES, (BATCH,))]
        with torch.no_grad():
            start = time.process_time()
            for number in range(BARE):
                pl_module.training_step(batch, number)
        bare = (time.process_time() - start) / BARE
        self.found = {"steps": -trainer.global_step, "evaluations": 0, "bare": bare, "stepping": 0.0, "sweeping": 0.0}
        self._epoch = time.process_time()

    @override
    def on_probing_start(self, trainer: L.Trainer, module: L.LightningModule, purpose: str) -> None:
        self._probing = time.process_time()

    @override
    def on_probing_end(self, trainer: L.Trainer, module: L.LightningModule, purpose: str) -> None:
        self.found["sweeping"] += time.process_time() - self._probing

    @override
    def on_sweep(self, trainer: L.Trainer, module: L.LightningModule, sweep: object) -> None:
        self.found["evaluations"] = sweep.evaluations  # type: ignore[attr-defined]

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.found["steps"] += trainer.global_step
        self.found["stepping"] = time.process_time() - self._epoch - self.found["sweeping"]

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.found))


def epoch(ranks: int, probes: int, samples: int = SAMPLES) -> Epoch:
    """Train for two epochs in a group of processes: directions are learned in the first, and the second counts.

    Args:
        ranks: How many processes.
        probes: ``q``; 0 trains without VAMO's callback.
        samples: ``n``.

    Returns:
        What the second epoch cost.

    Raises:
        RuntimeError: If a process has not written what its epoch cost.
    """
    data = TensorDataset(torch.randn(samples, INPUTS), torch.randint(CLASSES, (samples,)))
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[L.Callback] = [Watch(Path(folder))]
        module = Classifier(nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)))
        if probes:
            with_vamo(module)
            callbacks.append(VAMOCallback(probes, control="replay", alpha="adaptive", mu=0.01, seed=0, verbose=False))
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")  # its processes need not import anything
        trainer = L.Trainer(max_epochs=2, accelerator="cpu", devices=ranks, strategy=strategy, callbacks=callbacks, **quiet)
        trainer.fit(module, DataLoader(data, BATCH, shuffle=True))
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    if len(found) != ranks:
        raise RuntimeError(f"{len(found)} of {ranks} processes reported what their epoch cost")
    means = {name: fmean(each[name] for each in found) for name in ("bare", "stepping", "sweeping")}
    return Epoch(ranks, probes, int(found[0]["steps"]), int(found[0]["evaluations"]), **means)


def measured(samples: int = SAMPLES, rounds: int = 5, most: int = RANKS[-1]) -> list[list[Epoch]]:
    """Epochs of plain training and of VAMO, in turn, for each number of processes.

    Args:
        samples: ``n``.
        rounds: How often each is measured.
        most: The largest number of processes.

    Returns:
        The epochs of each round: for each number of processes a plain one and one of VAMO.
    """
    cases = [(ranks, probes) for ranks in RANKS if ranks <= most for probes in (0, PROBES)]
    return [[epoch(*case, samples) for case in cases] for _ in range(rounds)]


def lines(rounds: list[list[Epoch]]) -> list[list[str]]:
    """The rows of the table, one for each number of processes; times are medians over the rounds."""
    return [
        [
            str(vamo[0].ranks),
            str(vamo[0].steps),
            f"{median(each.step for each in plain):.2f}",
            f"{median(each.step for each in vamo):.2f}",
            f"{vamo[0].evaluations:,}",
            f"{median(each.forward for each in vamo):.2f}",
        ]
        for plain, vamo in zip(*_plain_and_vamo(rounds), strict=True)
    ]


def _plain_and_vamo(rounds: list[list[Epoch]]) -> tuple[list[tuple[Epoch, ...]], list[tuple[Epoch, ...]]]:
    """For each number of processes the plain epochs of all rounds, and those of VAMO."""
    cases = list(zip(*rounds, strict=True))
    return cases[::2], cases[1::2]


HEAD = ["processes", "steps", "plain step", "VAMO's step", "forward passes of a sweep", "a forward pass of a sweep"]


def plot(rounds: list[list[Epoch]], to: Path) -> None:
    """Draw what an epoch costs a process against the number of processes, medians over the rounds.

    Args:
        rounds: The epochs of each round.
        to: The SVG file.
    """
    import panels  # matplotlib is for those who draw

    axes = panels.panel((3.7, 3.2))
    plain, vamo = _plain_and_vamo(rounds)
    ranks = [runs[0].ranks for runs in plain]
    series = {
        "plain steps": [median(run.stepping / run.bare for run in runs) for runs in plain],
        f"VAMO's steps, q = {PROBES}": [median(run.stepping / run.bare for run in runs) for runs in vamo],
        f"the sweep, q = {PROBES}": [median(run.sweeping / run.bare for run in runs) for runs in vamo],
    }
    for name, costs in series.items():
        axes.loglog(ranks, costs, "o-", ms=3.5, label=name)
        law = "divided by P" if name == next(reversed(series)) else None
        axes.loglog(ranks, [costs[0] / count for count in ranks], "k:", label=law)
    axes.set(title="An epoch of each process", xlabel="processes P", ylabel="processor time, in bare forward passes")
    axes.set_xticks(ranks, [str(count) for count in ranks])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    panels.save(axes.figure, to)


def main() -> None:
    """Measure, print the table, and draw the picture and write the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="the SVG file to draw")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="n")
    parser.add_argument("--most", type=int, choices=RANKS, default=RANKS[-1], help="the largest number of processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for every single figure")
    arguments = parser.parse_args()
    for name, least in (("rounds", 1), ("samples", BATCH * arguments.most)):  # a batch for each process
        if getattr(arguments, name) < least:
            parser.error(f"argument --{name}: it takes at least {least}, got {getattr(arguments, name)}")
    silence()
    rounds = measured(arguments.samples, arguments.rounds, arguments.most)
    print(table(HEAD, lines(rounds)))
    if arguments.json:
        arguments.json.write_text(json.dumps([[asdict(each) for each in epochs] for epochs in rounds], indent=2))
    if arguments.picture:
        plot(rounds, arguments.picture)


if __name__ == "__main__":
    main()
