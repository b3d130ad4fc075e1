"""Without probes, or with a coefficient of zero, training is bit for bit that of the module without the mixin."""

from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn

from lightning_vamo import VAMOCallback, VAMOMixin
from tests.support.modules import Data, Everything, MemoryLogger, VAMOEverything, loaders, trainer


class Skipping(Everything):
    """Returns a dict, and None for some batches."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx % 4 == 1 else {"loss": loss, "extra": batch_idx}


class Hooked(Everything):
    """Overrides the hooks around the optimizer step, as a warm-up does."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * min(1.0, (self.trainer.global_step + 1) / 5)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_before_optimizer_step(self, optimizer):
        norm = torch.stack([p.grad.norm() for p in self.parameters()]).norm()
        self.log("norm", norm)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 6 else None


class BatchOnly(Everything):
    """Takes no batch index."""

    def training_step(self, batch):
        return super().training_step(batch, 0)


class WithoutShortcuts(VAMOMixin, L.LightningModule):
    """Defines its step in the very class that names the mixin."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithoutMixin(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3)

    training_step = WithoutShortcuts.training_step.__wrapped__
    configure_optimizers = WithoutShortcuts.configure_optimizers


class Few(Data):
    """Eight batches, of which the last is smaller."""

    batch_size = 12


def checkpoint(**options):
    return lambda: ModelCheckpoint(filename="{epoch}-{step}-{loss:.4f}", save_top_k=-1, **options)


# name: options of the Trainer (callbacks as functions that make them), arguments of the module
CONFIGURATIONS = {
    "plain": ({}, {}),
    "clip value": ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, {}),
    "accumulate and clip": ({"accumulate_grad_batches": 5, "gradient_clip_val": 0.1}, {"scheduler": "step"}),
    "accumulation schedule": ({"callbacks": [lambda: GradientAccumulationScheduler({0: 1, 1: 3})], "max_epochs": 3}, {}),
    "max steps": ({"max_steps": 17, "max_epochs": -1}, {}),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {}),
    "bf16-true": ({"precision": "bf16-true"}, {}),
    "64-true": ({"precision": "64-true"}, {"optimizer": "adamw"}),
    "val check interval": ({"val_check_interval": 0.3}, {}),
    "val every 2 epochs": ({"check_val_every_n_epoch": 2, "max_epochs": 4}, {}),
    "limit batches": ({"limit_train_batches": 4, "limit_val_batches": 1}, {}),
    "overfit batches": ({"overfit_batches": 3}, {}),
    "fast dev run": ({"fast_dev_run": 3}, {}),
    "early stopping": ({"max_epochs": 6, "callbacks": [lambda: EarlyStopping("val_loss", patience=0, mode="max")]}, {}),
    "stochastic weight averaging": (
        {"max_epochs": 4, "callbacks": [lambda: StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)]},
        {"scheduler": "epoch"},
    ),
    "lr monitor": ({"callbacks": [LearningRateMonitor]}, {"scheduler": "step"}),
    "lr finder": (
        {"callbacks": [lambda: LearningRateFinder(num_training_steps=12, attr_name="lr")]},
        {"scheduler": "epoch"},
    ),
    "batch size finder": ({"callbacks": [lambda: BatchSizeFinder(max_trials=1, steps_per_trial=2, init_val=6)]}, {}),
    "checkpoint every 4 steps": ({"callbacks": [checkpoint(every_n_train_steps=4)]}, {}),
    "checkpoint by loss": ({"callbacks": [checkpoint(monitor="val_loss")]}, {}),
    "checkpoint by time": ({"callbacks": [checkpoint(train_time_interval=timedelta(0))]}, {}),
    "one cycle": ({"accumulate_grad_batches": 2}, {"scheduler": "onecycle"}),
    "plateau": ({"max_epochs": 5}, {"scheduler": "plateau"}),
    "plateau by step": ({"max_epochs": 3}, {"scheduler": "plateau-step"}),
    "reload every epoch": ({"reload_dataloaders_every_n_epochs": 1, "max_epochs": 3}, {}),
    "detect anomaly": ({"detect_anomaly": True}, {}),
}


def run(cls, callback, options, arguments, path):
    """Train, and return everything that has to be the same."""
    L.seed_everything(7, verbose=False)
    module = cls(**arguments)
    logger = MemoryLogger()
    callbacks = [make() for make in options.get("callbacks", [])] + ([callback] if callback else [])
    options = {**options, "callbacks": callbacks, "logger": logger}
    options["enable_checkpointing"] = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    fit = trainer(path, **options)
    fit.fit(module, datamodule=Few())
    files = sorted(file.name for file in path.rglob("*.ckpt"))
    states = [torch.load(file, weights_only=True) for file in sorted(path.rglob("*.ckpt"))]
    metrics = {name: value.item() for name, value in fit.callback_metrics.items() if not name.startswith("vamo/")}
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizer": fit.optimizers[0].state_dict(),
        "logged": logger.rows,
        "metrics": metrics,
        "global_step": fit.global_step,
        "epoch": fit.current_epoch,
        "learning rates": [group["lr"] for group in fit.optimizers[0].param_groups],
        "checkpoint names": files,
        "checkpoint weights": [state["state_dict"] for state in states],
        "checkpoint steps": [(state["global_step"], state["epoch"], state["lr_schedulers"]) for state in states],
        "calls": getattr(module, "calls", None),
        "random state": torch.get_rng_state(),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


CALLBACKS = {
    "probes=0": {"probes": 0},
    "alpha=0": {"probes": 1, "alpha": 0.0, "seed": 3, "mu": 1e-3},
    "alpha=0, recomputed": {"probes": 1, "alpha": 0.0, "seed": 3, "mu": 1e-3, "control": "recompute"},
}
MEASURED = ("plain", "accumulate and clip", "bf16-mixed", "bf16-true", "64-true", "limit batches")
"""Configurations with the radius that is measured, which is as much work as two sweeps."""
LEFT_TO_LIGHTNING = (
    *("plain", "accumulate and clip", "bf16-mixed", "stochastic weight averaging", "lr finder"),
    *("checkpoint by loss", "reload every epoch"),
)
"""Configurations without probes: the steps are Lightning's own then, whatever it does around them."""
WITHIN_STEPS = (
    *("plain", "clip value", "accumulate and clip", "accumulation schedule", "max steps", "bf16-mixed", "bf16-true", "64-true"),
    *("val check interval", "limit batches", "lr finder", "batch size finder", "checkpoint every 4 steps", "plateau by step"),
    *("reload every epoch", "detect anomaly"),
)
"""Configurations for rows that are recomputed: those that reach into a step, or end one early, where a row is evaluated."""
COMPARED = {"probes=0": LEFT_TO_LIGHTNING, "alpha=0": tuple(CONFIGURATIONS), "alpha=0, recomputed": WITHIN_STEPS}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """Runs without the mixin, each made once for all the callbacks that are compared with it."""
    made = {}

    def of(cls, options, arguments):
        key = (cls, str(options), str(arguments))
        if key not in made:
            made[key] = run(cls, None, options, arguments, tmp_path_factory.mktemp("plain"))
        return made[key]

    return of


@pytest.mark.parametrize(
    ("configuration", "arguments"),
    [
        pytest.param(configuration, arguments, id=f"{configuration}-{name}")
        for configuration in CONFIGURATIONS
        for name, arguments in CALLBACKS.items()
        if configuration in COMPARED[name]
    ],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")  # of two large batches
def test_matches_automatic_optimization(configuration, arguments, plain_run, tmp_path):
    options, module = CONFIGURATIONS[configuration]
    plain = plain_run(Everything, options, module)
    if arguments["probes"] and configuration in MEASURED:
        arguments = {**arguments, "probes": 2, "mu": "auto"}
    callback = VAMOCallback(**arguments)
    with_vamo = run(VAMOEverything, callback, options, module, tmp_path / "vamo")
    different = [key for key in plain if not same(plain[key], with_vamo[key])]
    assert different == []
    assert plain["logged"] or options.get("fast_dev_run")
    assert callback.report.backward_evaluations > 0
    assert (callback.report.snapshots > 0) == (arguments["probes"] > 0)  # else training is left to Lightning


@pytest.mark.parametrize("arguments", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.parametrize("cls", [Skipping, Hooked, BatchOnly], ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:.training_step. returned")
def test_matches_for_other_modules(cls, arguments, plain_run, tmp_path):
    mixed = type("Mixed", (VAMOMixin, cls), {})
    options = {"accumulate_grad_batches": 2}
    plain = plain_run(cls, options, {})
    with_vamo = run(mixed, VAMOCallback(**arguments), options, {}, tmp_path / "vamo")
    assert [key for key in plain if not same(plain[key], with_vamo[key])] == []


@pytest.mark.parametrize("arguments", CALLBACKS.values(), ids=CALLBACKS)
@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no")
def test_matches_where_the_step_is_defined_beside_the_mixin(arguments, plain_run, tmp_path):
    plain = plain_run(WithoutMixin, {}, {})
    with_vamo = run(WithoutShortcuts, VAMOCallback(**arguments), {}, {}, tmp_path / "vamo")
    assert [key for key in plain if not same(plain[key], with_vamo[key])] == []


def test_the_comparison_can_fail(plain_run, tmp_path):
    plain = plain_run(Everything, {}, {})
    with_vamo = run(VAMOEverything, VAMOCallback(probes=2, seed=3), {}, {}, tmp_path / "vamo")
    different = [key for key in plain if not same(plain[key], with_vamo[key])]
    assert "weights" in different
    assert "global_step" not in different


def trained_twice(cls, callbacks):
    L.seed_everything(7, verbose=False)
    module = cls()
    fit = trainer(callbacks=callbacks, max_epochs=1)
    data = loaders(num_workers=1, persistent_workers=True, generator=torch.Generator().manual_seed(5))
    fit.fit(module, *data)
    fit.fit_loop.max_epochs = 3
    fit.fit(module, *data)
    return module.state_dict(), fit.global_step, fit.current_epoch


@pytest.fixture(scope="module")
def twice_plainly():
    return trained_twice(Everything, [])


@pytest.mark.parametrize("arguments", CALLBACKS.values(), ids=CALLBACKS)
def test_refit_and_workers_match(arguments, twice_plainly):
    assert same(twice_plainly, trained_twice(VAMOEverything, [VAMOCallback(**arguments)]))
