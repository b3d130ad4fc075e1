"""The number of probes chosen by measurement, in training: by a clock that counts the work, since a real one is not exact."""

import re

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import InvalidArgumentError, Recompute, Replay, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections
from lightning_vamo.core.schedules import EfficientProbes
from tests.support.clock import takes
from tests.support.modules import trainer
from tests.support.watched import WatchedCounts


class Timed(VAMOMixin, L.LightningModule):
    """Linear regression on inputs that vary along one line, nearly; labels are noise, and so are gradients.

    A training step takes three units of time, and a forward pass of a sweep ``forward`` times as many.
    """

    def __init__(self, forward=1 / 3):
        super().__init__()
        self.forward_time = forward
        self.net = nn.Linear(12, 1)

    def loss(self, batch):
        return nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def probe_loss(self, batch, batch_idx):
        takes(3 * self.forward_time)
        return self.loss(batch)

    def training_step(self, batch, batch_idx):
        takes(3)
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def line(samples=480):
    generator = torch.Generator().manual_seed(3)
    inputs = 3 * torch.randn(samples, 1, generator=generator) * torch.ones(12) / 12**0.5
    inputs += 0.3 * torch.randn(samples, 12, generator=generator)
    return TensorDataset(inputs, torch.randn(samples, generator=generator))


class Watched(VAMOCallback):
    """Keeps what was chosen and why, epoch by epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.chosen = []

    def on_train_epoch_end(self, fit, module):
        super().on_train_epoch_end(fit, module)
        self.chosen.append(int(fit.callback_metrics["vamo/probes"]))


WARMED_UP = GradientSubspaceDirections(warmup_batches=64)


def efficient(maximum=4, **arguments):
    arguments = {"directions": WARMED_UP, "control": "replay", "seed": 1, **arguments}
    return Watched(probes=EfficientProbes(maximum, retry_after=2), **arguments)


def fit(callback, module, epochs=5, callbacks=(), ckpt=None, **options):
    L.seed_everything(1, verbose=False)
    with torch.random.fork_rng():
        module.net.reset_parameters()
    run = trainer(callbacks=[callback, *callbacks], max_epochs=epochs, **options)
    run.fit(module, DataLoader(line(), 8, shuffle=True), ckpt_path=ckpt, weights_only=True if ckpt else None)
    return run


def test_cheap_probes_are_used_as_far_as_they_pay(clock):
    callback = efficient()
    run = fit(callback, Timed(forward=0.02))
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    assert callback.chosen[0] > 0
    assert callback.chosen[-1] == 4
    assert metrics["vamo/expected_work"] == pytest.approx(1 + 0.02 * 5, rel=0.05)
    # Expected of the noise, measured of the second moment, of which nearly all is noise here.
    assert metrics["vamo/variance_removed"] == pytest.approx(metrics["vamo/expected_removed"], abs=0.15)


def test_dear_probes_are_not_used_once_that_is_known(clock):
    callback = efficient()
    fit(callback, Timed(forward=3.0), epochs=9)
    # As many as pay at what a forward pass is assumed to take; then none, and one after two epochs and after four.
    assert callback.chosen == [1, 0, 0, 1, 0, 0, 0, 0, 1]


def test_random_directions_are_never_probed(clock):
    callback = efficient(directions=SphereDirections())
    module, plain = Timed(), Timed()
    fit(callback, module)
    assert callback.chosen == [0] * 5
    assert callback.report.forward_evaluations == callback.report.backward_evaluations == 5 * 60
    fit(VAMOCallback(probes=0), plain)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), plain.parameters(), strict=True))


def test_directions_go_on_being_learned_without_probes(clock):
    """While no probes pay, the steps are plain; when they have become cheap, those that were learned are probed."""

    class Cheaper(Timed):
        def on_train_epoch_start(self):
            self.forward_time = 3.0 if self.current_epoch < 4 else 0.02

    callback = efficient()
    fit(callback, Cheaper(), epochs=10)
    assert callback.chosen[:9] == [1, 0, 0, 1, 0, 0, 0, 0, 1]
    assert callback.chosen[9] > 1


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize(("every", "steps"), [(1, (40, 160)), (2, (120, 160))])
def test_a_resumed_run_repeats_the_choices(every, steps, clock, tmp_path):
    """Of 60 steps to an epoch: within the first and a later one, and at the end of a snapshot for two."""

    def run(folder, ckpt=None):
        callback, module = efficient(control=Replay(every_n_epochs=every)), Timed(forward=0.05)
        saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=40)
        fit(callback, module, epochs=4, callbacks=[saver], ckpt=ckpt, enable_checkpointing=True)
        return callback, module

    whole, module = run(tmp_path / "whole")
    assert len(set(whole.chosen)) > 1
    for step in steps:
        resumed, other = run(tmp_path / str(step), ckpt=tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.chosen == whole.chosen[-len(resumed.chosen) :]
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_a_checkpoint_within_an_epoch_keeps_the_time_of_rows_apart(clock):
    """Of steps that take three units, and rows of two forward passes that take one each."""
    states = []

    class Saved(Watched):
        def on_train_batch_end(self, fit, module, outputs, batch, batch_idx):
            if batch_idx == 9:
                states.append(self.state_dict())

    fit(Saved(probes=EfficientProbes(1), directions=WARMED_UP, control="recompute", seed=1), Timed(forward=1 / 30), epochs=2)
    assert states[1]["totals"]["row_seconds"] > states[0]["totals"]["row_seconds"] > 0
    for state in states:
        assert state["choice"]["times"]["seconds"]["sweep"][-9:] == pytest.approx([3 + 2 * 0.1] * 9)
    assert states[0]["totals"]["row_seconds"] == pytest.approx(10 * 2 * 0.1)
    totals = states[0]["totals"]
    before = totals["sweep_seconds"] + totals["warmup_seconds"]
    assert totals["training_seconds"] == pytest.approx(10 * 3 + totals["row_seconds"] + before)


class ByRank(Timed):
    """One rank is slow to probe: by its own clock it would never probe, by the other's always."""

    def on_fit_start(self):
        super().on_fit_start()
        self.forward_time = 0.02 if self.global_rank == 0 else 2.0


class Keep(L.Callback):
    def __init__(self, folder, callback):
        self.folder = folder
        self.callback = callback

    def on_train_end(self, fit, module):
        torch.save({"chosen": self.callback.chosen, "state": module.state_dict()}, self.folder / f"{fit.global_rank}.pt")


def test_ranks_go_by_one_clock(clock, tmp_path):
    callback = efficient()
    fit(
        callback, ByRank(), epochs=3, callbacks=[Keep(tmp_path, callback)], strategy=DDPStrategy(start_method="fork"), devices=2
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["chosen"] == second["chosen"]
    assert first["chosen"][-1] > 0
    assert all(torch.equal(first["state"][name], second["state"][name]) for name in first["state"])


@pytest.mark.parametrize(("forward", "expected"), [(3.0, [0, 1, 0]), (0.01, [0, 1, 2])])
def test_within_an_epoch_a_snapshot_is_chosen_by_what_the_last_one_was_worth(forward, expected, clock):
    arguments = {"directions": WARMED_UP, "control": Recompute(every_n_train_steps=20), "seed": 1}
    callback = WatchedCounts(probes=EfficientProbes(4), **arguments)
    fit(callback, Timed(forward=forward), epochs=1)
    assert callback.counts == expected


def test_reasons_are_said_when_the_choice_changes(clock, caplog):
    with caplog.at_level("INFO"):
        callback = efficient()
        fit(callback, Timed(forward=0.02), epochs=3)
    said = [record.message for record in caplog.records if re.match(r"VAMO, epoch \d+: probes=", record.message)]
    changes = [e for e, probes in enumerate(callback.chosen) if e == 0 or probes != callback.chosen[e - 1]]
    assert [int(line.split()[2].rstrip(":")) for line in said] == changes
    assert all(f"probes={callback.chosen[epoch]}" in line for epoch, line in zip(changes, said, strict=True))


def test_each_fit_chooses_anew(clock):
    callback = efficient()
    fit(callback, Timed(forward=3.0), epochs=2)
    assert callback.chosen[-1] == 0
    callback.chosen = []
    fit(callback, Timed(forward=0.02), epochs=2)
    assert callback.chosen[0] > 0
    assert callback.settings.schedule.chosen is None


@pytest.mark.parametrize("alpha", ["theory", "linear-decay", 0.5])
def test_it_needs_the_adaptive_coefficient(alpha):
    with pytest.raises(InvalidArgumentError, match=r"`alpha` must be 'adaptive' where .* got"):
        VAMOCallback(probes=EfficientProbes(maximum=2), alpha=alpha)


def test_the_maximum_must_fit_the_model():
    callback = efficient(10_000, directions=GradientSubspaceDirections(rank=None))
    with pytest.raises(InvalidArgumentError, match="10000"):
        fit(callback, Timed())
