"""The subcommand ``find``: measure whether probes would pay, print the finding, and write the finding into a folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_vamo.callbacks.base import MethodCallback
from lightning_vamo.callbacks.vamo import VAMOCallback
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError
from lightning_vamo.finder.find import find_probes
from lightning_vamo.finder.finding import ProbeFinding


def find(
    trainer: Trainer,
    model: LightningModule,
    datamodule: LightningDataModule | None = None,
    at: str | None = None,
    maximum: int = 16,
    batches: int = 64,
    output: str | None = None,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Measure on a few dozen gradients of the model whether probes would pay.

    Prints a table and a sentence of advice, and writes ``probes.json`` and, with matplotlib, ``probes.png``.

    Args:
        trainer: The Trainer.
        model: The model.
        datamodule: Its data.
        at: A checkpoint to measure at, such as one from the middle of training; by default the new model is measured.
        maximum: The largest number of probes to look at.
        batches: Number of mini-batches to compute gradients of.
        output: Folder of the files; by default ``lightning_logs/find`` in the Trainer's default_root_dir.
        ckpt_path: The same as ``at``, for configurations of ``fit``; ``at`` takes precedence.
        weights_only: How to load the checkpoint, as for ``fit``.

    Raises:
        InvalidArgumentError: If the folder cannot be written to.
    """
    folder = Path(output or Path(trainer.default_root_dir, "lightning_logs", "find"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # before all the work
    except OSError as error:
        raise InvalidArgumentError(
            f"`output` must be a folder that can be written to, got {str(folder)!r}, which gives {error}: name another folder."
        ) from None
    finding = find_probes(
        trainer, model, datamodule, maximum=maximum, batches=batches, ckpt_path=at or ckpt_path, weights_only=weights_only
    )
    _write(finding, folder, [c for c in trainer.callbacks if isinstance(c, MethodCallback)])  # type: ignore[attr-defined]


@rank_zero_only
def _write(finding: ProbeFinding, folder: Path, methods: Sequence[MethodCallback]) -> None:
    print(f"\n{finding}\n")
    for method in methods:
        if not isinstance(method, VAMOCallback):
            print(f"These figures are for a VAMOCallback, but the configuration trains with {type(method).__name__}.")
        elif not method.settings.directions.learns:
            family = type(method.settings.directions).__name__
            print(f"These figures are for learned directions, but the configuration has {family}: see the column random.")
    finding.to_json(folder / "probes.json")
    written = [folder / "probes.json"]
    try:
        finding.plot().savefig(folder / "probes.png", dpi=150)
        written.append(folder / "probes.png")
    except UnsupportedError as error:
        print(error)
    print(f"Written: {', '.join(map(os.path.relpath, written))}")
