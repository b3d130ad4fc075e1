"""Short runs on a GPU: the time of a step and of a sweep's forward pass, the memory, and what the program waited for."""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from gpu_models import Model
from lightning.pytorch.utilities import move_data_to_device
from typing_extensions import override

from lightning_vamo import MeZOCallback, SVRGCallback, VAMOCallback, with_vamo

METHODS: dict[str, Callable[[], L.Callback] | None] = {
    "plain": None,
    "VAMO, sweeps, q = 4": lambda: VAMOCallback(probes=4, seed=0, verbose=False),
    "VAMO, carried rows, q = 4": lambda: VAMOCallback(probes=4, control="carry", seed=0, verbose=False),
    "SVRG": lambda: SVRGCallback(seed=0, verbose=False),
    "MeZO": lambda: MeZOCallback(seed=0, verbose=False),
}
"""What to train with; None is plain Lightning."""

READS = {"MeZO"}
"""Methods whose steps read a number of the GPU, by design."""

WARM_UP = 3
"""Steps of the last epoch that are not timed: the first takes the snapshot."""


@dataclass
class Figures:
    """What was measured of a run.

    Attributes:
        step: Seconds of a step; None if it was not measured.
        forward: Seconds of a forward pass of the sweep, or of a bare one for plain training; None without a sweep.
        peak: Bytes that were allocated at most; 0 on a CPU.
        waits: What the timed steps waited for.
        note: Why there are no figures; empty if there are.
    """

    step: float | None = None
    forward: float | None = None
    peak: int = 0
    waits: str = "–"
    note: str = ""


class _Timed(L.Callback):
    """Times the steps of the last epoch after the first ones, all together, so that the GPU may run behind.

    Args:
        guarded: Whether a step is to raise where the program waits for the GPU.
    """

    def __init__(self, guarded: bool) -> None:
        self.step: float | None = None
        self.guarded = guarded
        self._start = 0.0

    @override
    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs or batch_idx < WARM_UP:
            return
        if batch_idx == WARM_UP:
            synchronize(module.device)
            self._start = time.perf_counter()
        if self.guarded:
            torch.cuda.set_sync_debug_mode("error")

    @override
    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *arguments: Any) -> None:
        if self.guarded:
            torch.cuda.set_sync_debug_mode("default")
        batches = int(trainer.num_training_batches)
        if trainer.current_epoch + 1 == trainer.max_epochs and arguments[-1] + 1 == batches:
            synchronize(module.device)
            self.step = (time.perf_counter() - self._start) / (batches - WARM_UP)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(model: Model, name: str, precision: str, compiled: str | None, dry: bool) -> Figures:
    """Train a little, twice: once to time it, and once to see what its steps wait for.

    Args:
        model: What to train.
        name: Which of ``METHODS`` to train with.
        precision: The Trainer's.
        compiled: The backend to compile the network with, or None.
        dry: Whether to do it on a CPU, where nothing is waited for.

    Returns:
        The figures; of what fails, the error.
    """
    device = torch.device("cpu" if dry else "cuda:0")
    try:
        figures = _timed(model, name, precision, compiled, device)
        figures.waits = "–" if dry else _waits(model, name, precision)
    except Exception as error:  # the other figures are worth having
        traceback.print_exc()
        return Figures(note=f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    finally:
        torch._dynamo.reset()
    return figures


def _timed(model: Model, name: str, precision: str, compiled: str | None, device: torch.device) -> Figures:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    batches = WARM_UP + (3 if device.type == "cpu" else 20)
    step, callback = _fit(model, name, precision, compiled, device, batches, guarded=False)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    if callback is None:
        return Figures(step, _bare(model, precision, compiled, device, batches), peak)
    report = getattr(callback, "report", None)
    swept = 0 if report is None else report.forward_evaluations - report.warmup_evaluations - batches
    sweeps = name.startswith("VAMO, sweeps") and report is not None and swept > 0
    return Figures(step, report.sweep_seconds / swept if sweeps else None, peak)


def _waits(model: Model, name: str, precision: str) -> str:
    """What the steps waited for, without a compiler, whose own launches may wait."""
    if name in READS:
        return "by design"
    try:
        _fit(model, name, precision, None, torch.device("cuda:0"), WARM_UP + 4, guarded=True)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "lightning_vamo" in frame.filename]
        frame = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
        return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _fit(
    model: Model, name: str, precision: str, compiled: str | None, device: torch.device, batches: int, *, guarded: bool
) -> tuple[float | None, L.Callback | None]:
    """A short run, and the callback of its method; carried rows are filled in an epoch before the one that counts."""
    make, timed = METHODS[name], _Timed(guarded)
    callback = None if make is None else make()
    module = model.module(compiled) if make is None else with_vamo(model.module(compiled))
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        accelerator="cpu" if device.type == "cpu" else "gpu",
        devices=1,
        precision=precision,
        max_epochs=2 if "carried" in name else 1,
        callbacks=[*([] if callback is None else [callback]), timed],
        **quiet,
    )
    trainer.fit(module, model.loader(batches))
    return timed.step, callback


def _bare(model: Model, precision: str, compiled: str | None, device: torch.device, batches: int) -> float:
    """Seconds of a forward pass in a bare loop without gradients, five for each batch, as in a sweep with four probes."""
    module = model.module(compiled).to(device)
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype is torch.bfloat16):
        for number, loaded in enumerate(model.loader(batches)):
            if number == 1:  # the first one warms up
                synchronize(device)
                start = time.perf_counter()
            batch = move_data_to_device(loaded, device)
            for _ in range(5):
                module.training_step(batch, number)
    synchronize(device)
    return (time.perf_counter() - start) / (5 * (batches - 1))
