"""Directions learned in training: what they remove, with what Lightning does around the steps, and on several processes."""

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, OrthonormalDirections
from lightning_vamo.core.schedules import LinearProbes
from tests.integration.test_ddp import Save
from tests.integration.test_fsdp2 import VAMO, train
from tests.modules import VAMOEverything, WatchedSweeps, loaders, trainer
from tests.processes import in_processes

FORMS = {"factored": GradientSubspaceDirections(), "dense": GradientSubspaceDirections(rank=None)}


class Classifier(VAMOMixin, L.LightningModule):
    """Classes that overlap, so that gradients stay noisy, in few dimensions."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)


def overlapping(samples=400):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (samples,), generator=generator)
    inputs = torch.eye(4, 20)[labels] + 0.5 * torch.randn(samples, 20, generator=generator)
    return TensorDataset(inputs, labels)


def fit(callback, cls=Classifier, epochs=4, **options):
    L.seed_everything(1, verbose=False)
    module = cls()
    run = trainer(callbacks=[callback], max_epochs=epochs, **options)
    run.fit(module, DataLoader(overlapping(), 8, shuffle=True))
    return run, module, {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.mark.parametrize("directions", FORMS.values(), ids=FORMS)
def test_they_remove_a_hundred_times_what_random_ones_do(directions):
    _, _, learned = fit(VAMOCallback(probes=4, directions=directions, alpha="adaptive", seed=1))
    _, _, drawn = fit(VAMOCallback(probes=4, directions=OrthonormalDirections(), alpha="adaptive", seed=1))
    assert learned["vamo/variance_removed"] > 0.25
    assert drawn["vamo/variance_removed"] < 0.02
    assert learned["vamo/probes"] == 4


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}])
def test_they_learn_whatever_lightning_does_around_a_step(options):
    callback = VAMOCallback(probes=4, directions=GradientSubspaceDirections(), alpha="adaptive", seed=1)
    _, _, metrics = fit(callback, **options)
    assert metrics["vamo/variance_removed"] > 0.15


def test_without_a_warm_up_the_first_epoch_is_plain():
    callback = WatchedSweeps(probes=3, directions=GradientSubspaceDirections(warmup_batches=0), seed=1)
    _, one, metrics = fit(callback, epochs=1)
    assert metrics["vamo/probes"] == 0
    assert callback.sweeps == []
    _, plain, _ = fit(VAMOCallback(probes=0), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), plain.parameters(), strict=True))
    _, _, metrics = fit(callback, epochs=2)
    assert metrics["vamo/probes"] == 3
    assert len(callback.sweeps) == 1


def test_a_warm_up_takes_no_step_leaves_no_trace_and_is_counted():
    def run(alpha, **arguments):
        L.seed_everything(0, verbose=False)
        module = VAMOEverything()
        callback = VAMOCallback(directions=GradientSubspaceDirections(warmup_batches=5), alpha=alpha, **arguments)
        fit = trainer(callbacks=[callback], max_epochs=2)
        fit.fit(module, *loaders())  # 12 batches
        return module, callback, fit

    plain, _, plain_fit = run("theory", probes=0)
    learned, callback, learned_fit = run(0.0, probes=2)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in learned.state_dict().items())
    assert all(
        torch.equal(learned_fit.callback_metrics[name], value)
        for name, value in plain_fit.callback_metrics.items()
        if not name.startswith("vamo/")
    )
    assert callback.report.backward_evaluations == 2 * 12 + 5
    assert callback.report.forward_evaluations == 2 * (12 * 3 + 8) + 2 * 12 + 5


def test_they_follow_the_schedule():
    counts = []

    class Counting(VAMOCallback):
        def _take_snapshot(self, *arguments):
            super()._take_snapshot(*arguments)
            counts.append(self._standing.taken.correction.directions.count)

    schedule = LinearProbes(start=2, end=6, epochs=3)
    _, _, metrics = fit(Counting(probes=schedule, directions=GradientSubspaceDirections(), alpha="adaptive", seed=1))
    assert counts == [2, 4, 6, 6]
    assert metrics["vamo/variance_removed"] > 0.2


class Dealt(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(overlapping(160), 8, shuffle=True)


@pytest.mark.parametrize("directions", FORMS.values(), ids=FORMS)
def test_ranks_learn_the_same_to_the_bit(directions, tmp_path):
    L.seed_everything(1, verbose=False)
    callback = VAMOCallback(probes=3, directions=directions, alpha="adaptive", seed=1)
    strategy = DDPStrategy(start_method="fork")
    run = trainer(callbacks=[callback, Save(tmp_path)], strategy=strategy, devices=2, max_epochs=3)
    run.fit(Classifier(), datamodule=Dealt())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])
    assert first["metrics"]["vamo/variance_removed"] == second["metrics"]["vamo/variance_removed"] > 0.1


def sharded_and_not(folder):
    arguments = {"probes": 3, "mu": 1e-2, "difference": "central", "alpha": "adaptive", "seed": 1}
    results = {}
    for name, rank in (("factored", 1), ("dense", None)):
        for sharded in (False, True):
            callback = VAMOCallback(directions=GradientSubspaceDirections(rank), **arguments)
            results[f"{name} {sharded}"] = train(VAMO, [callback], sharded, torch.float64)
    return results


def test_shards_learn_what_the_whole_does(tmp_path):
    for result in in_processes(sharded_and_not, tmp_path):
        for name in ("factored", "dense"):
            whole, sharded = result[f"{name} False"], result[f"{name} True"]
            assert all(torch.allclose(sharded[key], value, rtol=1e-8, atol=1e-10) for key, value in whole.items())
