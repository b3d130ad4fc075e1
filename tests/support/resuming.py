"""Runs that are killed at a given point, resumed, and compared with the uninterrupted one."""

import os
import random
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing.spawn import ProcessException
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.schedules import LinearProbes
from tests.support.modules import classification_data, trainer

WARNINGS = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]


class Killed(BaseException):
    """Stands in for the end of the process: no hook of ours or of Lightning's may write anything after it."""


def die():
    raise Killed


REACHED = []
"""The points that the last run came to, in order; a sweep would put back what an object of the run remembers."""


class Module(L.LightningModule):
    """Random numbers, buffers, metrics, logs and schedulers: all that a checkpoint of Lightning's own leaves out, and more."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(3, average="micro", validate_args=False)
        self.auroc = torchmetrics.classification.MulticlassAUROC(3, validate_args=False)  # keeps lists of predictions

    def training_step(self, batch, batch_idx):
        inputs, labels = batch if isinstance(batch[0], torch.Tensor) else map(torch.cat, zip(*batch, strict=True))
        scale = 1 + 0.1 * (random.random() + np.random.rand())
        logits = self.net(inputs * scale)
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.auroc.update(logits, labels)
        size = {"batch_size": len(labels)}
        self.log("loss", loss, on_step=True, on_epoch=True, **size)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max", **size)
        self.log("worst_too", loss, on_step=False, on_epoch=True, reduce_fx=max, **size)
        if batch_idx == 0:
            self.log("first", loss, on_step=False, on_epoch=True, **size)
        self.log_dict({"accuracy": self.accuracy, "auroc": self.auroc}, on_step=False, on_epoch=True, **size)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.7, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class VAMOModule(VAMOMixin, Module):
    """Can die where a sweep evaluates a batch."""

    def __init__(self, kill=None, how=None):
        super().__init__()
        self.kill = kill
        self.how = how or die

    def probe_loss(self, batch, batch_idx):
        point = (self.current_epoch, batch_idx, "sweep")
        REACHED.append(point)
        if self.kill == point:
            self.how()
        return super().probe_loss(batch, batch_idx)


TIMES = ("sweep_seconds", "row_seconds")


class Rows(Logger):
    name, version = "rows", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, *arguments):
        pass

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, {name: value for name, value in metrics.items() if not name.endswith("_seconds")}))


class Watch(L.Callback):
    """Remembers every batch that is trained on, and kills the run at a given point."""

    def __init__(self, kill=None, how=None):
        self.kill = kill
        self.how = how or die
        self.batches = []
        self.reached = []

    def at(self, fit, phase, batch_idx):
        point = (fit.current_epoch, batch_idx, phase)
        REACHED.append(point)
        if self.kill == point:
            self.how()

    def on_train_batch_start(self, fit, module, batch, batch_idx):
        self.at(fit, "start", batch_idx)  # of the epoch's first batch: between the sweep and the first step
        content = sum(part.double().sum().item() for part in tree_leaves(batch))
        self.batches.append((fit.current_epoch, batch_idx, content))

    def on_before_optimizer_step(self, fit, module, optimizer):
        self.at(fit, "step", fit.fit_loop.batch_idx)

    def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
        self.at(fit, "end", batch_idx)


class Saver(ModelCheckpoint):
    """Remembers how many rows had been logged, and batches begun, at each checkpoint."""

    def __init__(self, folder, **arguments):
        super().__init__(folder, filename="{epoch}-{step}", save_top_k=-1, **arguments)
        self.marks = {}
        self.found = {path.name for path in folder.glob("*.ckpt")}

    def _save_checkpoint(self, fit, filepath):
        if Path(filepath).name in self.found:
            return  # a run that resumes saves its step again with the next batch that accumulates, which has no mark
        super()._save_checkpoint(fit, filepath)
        watch = next(callback for callback in fit.callbacks if isinstance(callback, Watch))
        self.marks[Path(filepath).name] = (len(fit.logger.rows), len(watch.batches))


SAMPLES = 50


BATCH = 8  # 7 batches


def run(folder, configuration, kill=None, ckpt=None, seed=1, how=None):
    options = dict(configuration)
    second = options.pop("second", None)
    loader = {"shuffle": True, "batch_size": BATCH, **options.pop("loader", {})}
    saver = Saver(folder, **options.pop("saver", {"every_n_train_steps": 3}))
    built = options.pop("module", VAMOModule)
    make = options.pop("make", lambda: VAMOCallback(**{"probes": 2, "mu": 1e-3, "seed": 4, **options.pop("vamo", {})}))
    callback = make()
    options.setdefault("max_epochs", 4)
    L.seed_everything(seed, verbose=False)
    torch.manual_seed(seed)
    if "generator" in loader:
        loader["generator"] = torch.Generator().manual_seed(loader["generator"])
    module, watch, rows = built(kill, how), Watch(kill, how), Rows()
    callbacks = [callback, watch, saver]
    fit = trainer(folder, callbacks=callbacks, logger=rows, enable_checkpointing=True, **options)
    data, val = DataLoader(classification_data(SAMPLES), **loader), DataLoader(classification_data(20, seed=1), 10)
    if second:
        data = [data, DataLoader(classification_data(40, seed=2), **second)]
    REACHED.clear()
    try:
        fit.fit(module, data, val, ckpt_path=ckpt, weights_only=True if ckpt else None)
    except Killed:
        assert kill is not None
    else:
        assert kill is None, f"there is no such point as {kill}"
    watch.reached = list(REACHED)
    return fit, module, watch, rows, saver


def last_checkpoint(folder):
    return max(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name))


def assert_continues(resumed, uninterrupted, checkpoint):
    fit, module, watch, rows, _ = resumed
    whole_fit, whole_module, whole_watch, whole_rows, whole_saver = uninterrupted
    assert fit.global_step == whole_fit.global_step
    assert fit.current_epoch == whole_fit.current_epoch
    for name, value in whole_module.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    one, other = fit.optimizers[0].state_dict(), whole_fit.optimizers[0].state_dict()
    assert one["param_groups"] == other["param_groups"]
    assert one["state"].keys() == other["state"].keys()
    for index, state in one["state"].items():
        assert all(torch.equal(value, other["state"][index][name]) for name, value in state.items() if value is not None)
    logged, begun = whole_saver.marks[checkpoint.name]
    assert watch.batches == whole_watch.batches[begun:]
    expected = whole_rows.rows[logged:]
    # The row of the step that a checkpoint ends is logged right after the checkpoint, by the run that is killed later.
    assert rows.rows in (expected, expected[1:])
    assert rows.rows


def assert_survives(folder, configuration, kills, uninterrupted):
    """A run that is killed at each of some points in turn, and resumed each time, goes on bit for bit to the same end.

    Each process after the first begins with another seed: whatever it has done to its random states must not matter. What
    comes after the last kill is compared, and that is enough: an error at any point stays in all that follows from it.
    """
    checkpoint = None
    for seed, kill in enumerate(sorted(kills, key=uninterrupted[2].reached.index), start=1):
        run(folder, configuration, kill, ckpt=checkpoint, seed=seed)
        checkpoint = last_checkpoint(folder)
    assert_continues(run(folder, configuration, ckpt=checkpoint, seed=99), uninterrupted, checkpoint)


class Ranks(L.Callback):
    """Keeps each rank's end result and the batches that it saw."""

    def __init__(self, folder, watch):
        self.folder = folder
        self.watch = watch

    def on_train_end(self, fit, module):
        state = {"state": dict(module.state_dict()), "batches": self.watch.batches, "metrics": dict(fit.callback_metrics)}
        state["metrics"] = {name: value for name, value in state["metrics"].items() if not name.endswith(TIMES)}
        torch.save(state, self.folder / f"{fit.global_rank}.pt")


class KillsARank(Watch):
    """One process of two dies; the other hangs until it is ended."""

    def at(self, fit, phase, batch_idx):
        if fit.global_rank == 1:
            super().at(fit, phase, batch_idx)


def run_ranks(folder, kill=None, ckpt=None, seed=1, arguments=None, **options):
    folder.mkdir(exist_ok=True)
    L.seed_everything(1, verbose=False)  # the same in both runs: Lightning seeds the order of distributed samplers with it
    torch.manual_seed(seed)

    def kill_itself():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    watch = KillsARank(kill, kill_itself)
    saver = ModelCheckpoint(folder, filename="{epoch}-{step}", save_top_k=-1, every_n_train_steps=2)
    callback = VAMOCallback(**{"probes": LinearProbes(start=3, end=1, epochs=3), "mu": 1e-3, "seed": 4, **(arguments or {})})
    fit = trainer(
        folder,
        callbacks=[callback, watch, saver, Ranks(folder, watch)],
        enable_checkpointing=True,
        strategy=DDPStrategy(start_method="fork"),
        devices=2,
        max_epochs=3,
        accumulate_grad_batches=2,
        **options,
    )
    data, val = DataLoader(classification_data(60), 6, shuffle=True), DataLoader(classification_data(20, seed=1), 10)
    fit.fit(VAMOModule(), data, val, ckpt_path=ckpt, weights_only=True if ckpt else None)


def assert_ranks_continue(folder, expected, kills, arguments):
    """Kill a rank of two at each of some points in turn, resume each time, and end as the uninterrupted run did."""
    checkpoint = None
    for seed, kill in enumerate(kills, start=1):
        with pytest.raises(ProcessException):  # of the one that was killed, or of the one that then waits in vain
            run_ranks(folder, kill, ckpt=checkpoint, seed=seed, arguments=arguments)
        (folder / "killed").unlink()
        checkpoint = last_checkpoint(folder)
    run_ranks(folder, ckpt=checkpoint, seed=99, arguments=arguments)
    for rank, whole_run in enumerate(expected):
        resumed = torch.load(folder / f"{rank}.pt", weights_only=True)
        assert 0 < len(resumed["batches"]) < len(whole_run["batches"])
        assert resumed["batches"] == whole_run["batches"][-len(resumed["batches"]) :]
        assert all(torch.equal(value, whole_run["state"][name]) for name, value in resumed["state"].items())
        assert resumed["metrics"] == whole_run["metrics"]
