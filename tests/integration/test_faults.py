"""Data that fails or changes, losses that are not finite, and a device that runs out of memory, in the middle of a sweep."""

import random
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset, default_collate

from lightning_vamo import Replay, RunObserver, VAMOCallback
from lightning_vamo.core.directions import OrthonormalDirections
from lightning_vamo.core.probes.point import Point
from tests.support.modules import Everything, MemoryLogger, VAMOEverything, classification_data, loaders, trainer
from tests.support.ranks import Data, Regression, run
from tests.support.watched import WatchedSweeps


def state(fit, module):
    """What a sweep that failed must leave as it was."""
    return {
        "weights and buffers": [tensor.clone() for tensor in module.state_dict().values()],
        "modes": [m.training for m in module.modules()],
        "loggers": [id(logger) for logger in fit.loggers],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "calls": module.calls,
        "names": sorted(vars(module)),
    }


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Before(L.Callback):
    """Keeps the state before the second epoch's sweep: in front of the VAMOCallback, whose sweep comes next."""

    def __init__(self):
        self.state = None

    def on_train_batch_start(self, fit, module, batch, batch_idx):
        if fit.global_step == 12:
            self.state = state(fit, module)


def check_clean_failure(error, message, module=None, data=None, context=None):
    """Train into the failure, which is to propagate, and compare what is left with what was there."""
    L.seed_everything(0, verbose=False)
    module = module or VAMOEverything()
    train = data or loaders()[0]
    sampler, before = train.batch_sampler, Before()
    fit = trainer(callbacks=[before, VAMOCallback(probes=3, mu=1e-2, seed=1)], logger=MemoryLogger("somewhere"))
    with pytest.raises(error, match=message):
        fit.fit(module, train)
    assert before.state is not None
    after = state(fit, module)
    assert [key for key in after if not same(before.state[key], after[key])] == []
    assert train.batch_sampler is sampler
    assert module.automatic_optimization
    assert fit.global_step == 12
    assert not {"process_dataloader", "batch_to_device"} & vars(fit.strategy).keys()
    # And all of it can be used again.
    trainer(callbacks=[VAMOCallback(probes=1, mu=1e-2)], max_epochs=1, limit_train_batches=2).fit(
        VAMOEverything(), loaders()[0]
    )


class Failing(VAMOEverything):
    """Fails in the second sweep: at the snapshot, or at a point around it."""

    def __init__(self, error, perturbed):
        super().__init__()
        object.__setattr__(self, "failure", (error, perturbed))

    def on_train_epoch_start(self):
        object.__setattr__(self, "start", self.net[0].weight.detach().clone())

    def probe_loss(self, batch, batch_idx):
        loss = super().probe_loss(batch, batch_idx)
        error, perturbed = self.failure
        if self.trainer.current_epoch == 1 and batch_idx == 2 and perturbed != torch.equal(self.start, self.net[0].weight):
            raise error
        return loss


@pytest.mark.parametrize("perturbed", [False, True])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), ValueError("wrong shape"), KeyError("label")])
def test_a_step_that_fails_in_the_sweep(error, perturbed):
    check_clean_failure(type(error), error.args[0], Failing(error, perturbed))


def test_no_memory_for_the_copy_of_the_weights():
    copies, copy = [], Point.__init__

    def full(self, parameters):
        copies.append(1)
        copy(self, parameters)
        if len(copies) == 2:
            raise torch.OutOfMemoryError("out of memory")

    with patch.object(Point, "__init__", full):
        check_clean_failure(torch.OutOfMemoryError, "out of memory")


class Faulty(Dataset):
    """Fails from a certain number of reads on, or gets shorter."""

    def __init__(self, error, reads):
        self.data = classification_data()
        self.error = error
        self.reads = reads

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise self.error
        return self.data[index]


# The loader prefetches one batch of 8. An epoch reads 90 samples, and so do its sweep and the first one's warm-up.
@pytest.mark.parametrize("error", [RuntimeError("the disk is gone"), IndexError("the dataset is shorter now")])
def test_a_dataset_that_fails_in_the_sweep(error):
    train = DataLoader(Faulty(error, 90 + 180 + 16 + 40), batch_size=8, shuffle=True)
    check_clean_failure(type(error), error.args[0], data=train)


@pytest.mark.parametrize("error", [RuntimeError("the disk is gone"), IndexError("the dataset is shorter now")])
def test_a_dataset_that_fails_between_the_sweep_and_the_epoch(error):
    train = DataLoader(Faulty(error, 90 + 90 + 40), batch_size=8, shuffle=True)
    sampler, module = train.batch_sampler, VAMOEverything()
    fit = trainer(callbacks=[VAMOCallback(probes=2)])
    with pytest.raises(type(error), match=error.args[0]):
        fit.fit(module, train)
    assert fit.global_step > 0
    assert train.batch_sampler is sampler
    assert module.automatic_optimization
    assert "log" not in vars(module)
    assert "batch_to_device" not in vars(fit.strategy)


# Losses that are not finite


class Overflowing(VAMOEverything):
    """Its loss is not finite where the first weight has moved beyond a bound."""

    bad = float("nan")

    def probe_loss(self, batch, batch_idx):
        loss = super().probe_loss(batch, batch_idx)
        return loss * self.bad if batch_idx == 5 and self.is_beyond() else loss

    def is_beyond(self):
        return self.net[0].weight[0, 0] > self.trainer.callbacks[0].origin + 1e-6


class Origin(L.Callback):
    """Keeps the first weight at the epoch's start."""

    origin = 0.0

    def on_train_epoch_start(self, fit, module):
        self.origin = module.net[0].weight[0, 0].item()


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_directions_without_a_finite_loss_are_dropped(bad, difference):
    L.seed_everything(0, verbose=False)
    module = Overflowing()
    module.bad = bad
    callback = WatchedSweeps(probes=6, mu=0.1, difference=difference, seed=3)
    fit = trainer(callbacks=[Origin(), callback])
    with pytest.warns(UserWarning, match=r"not finite .* 6 probe directions, which are dropped .* smaller `mu`") as caught:
        fit.fit(module, loaders()[0])
    assert sum("dropped" in str(warning.message) for warning in caught) == 1  # of two sweeps
    last = callback.sweeps[-1]
    zero = [j for j in range(6) if not last.deltas[:, j].any()]
    assert fit.callback_metrics["vamo/directions_dropped"] == last.directions_dropped == len(zero)
    # Each way from the origin is beyond the bound for about half of the directions; central differences go both ways.
    assert len(zero) == 6 if difference == "central" else 0 < len(zero) < 6
    assert last.deltas.isfinite().all()
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_without_a_direction_left_the_epoch_trains_plainly():
    class Always(VAMOEverything):
        def probe_loss(self, batch, batch_idx):
            moved = not torch.equal(self.net[0].weight, self.trainer.callbacks[0].weight)
            return super().probe_loss(batch, batch_idx) * (float("nan") if moved else 1.0)

    class Weight(L.Callback):
        def on_train_epoch_start(self, fit, module):
            self.weight = module.net[0].weight.detach().clone()

    def weights(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module = cls()
        fit = trainer(callbacks=callbacks)
        fit.fit(module, loaders()[0])
        return list(module.state_dict().values()), fit.callback_metrics

    plain, _ = weights(Everything, [])
    with pytest.warns(UserWarning, match="along 2 of 2 probe directions"):
        dropped, metrics = weights(Always, [Weight(), VAMOCallback(probes=2, mu=1e-2)])
    assert same(plain, dropped)
    assert metrics["vamo/directions_dropped"] == 2
    assert metrics["vamo/alpha"] == 0
    assert "vamo/probe_snr" not in metrics


class PartlyNotANumber(VAMOEverything):
    """Has a bad sample, whose step is skipped as a callback of the user's would."""

    bad = 3

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if batch_idx == self.bad else loss

    def on_before_optimizer_step(self, optimizer):
        if any(p.grad is not None and not p.grad.isfinite().all() for p in self.parameters()):
            optimizer.zero_grad()


@pytest.mark.parametrize("control", ["replay", "carry", "recompute"])
@pytest.mark.filterwarnings("ignore:The loss of 1 of 12 training batches is not finite at the snapshot")
def test_a_batch_whose_loss_is_not_a_number_has_no_row_and_the_run_goes_on(control):
    """Its gradient is not finite either, so the step that a callback skips is the only one that is not corrected."""
    corrected = []

    class Watch(RunObserver):
        def on_correction(self, fit, module, snapshot, moments):
            corrected.append(moments is not None and bool(moments.any()))

    L.seed_everything(0, verbose=False)
    module = PartlyNotANumber()
    callback = VAMOCallback(probes=2, directions=OrthonormalDirections(), control=control, alpha="theory", seed=1)
    fit = trainer(callbacks=[callback, Watch()], max_epochs=3)
    fit.fit(module, DataLoader(classification_data(96), batch_size=8))
    assert fit.global_step == 36
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert corrected[24:].count(False) == 1
    assert torch.isfinite(torch.tensor(callback.report.variance_removed))


# Batches that are not those of the sweep


class Changing(Dataset):
    """Gives other inputs for some indices at each reading."""

    def __init__(self, changes, size=48):
        self.data = classification_data(size)
        self.changes = changes
        self.generator = torch.Generator().manual_seed(4)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        if self.changes(index):
            inputs = inputs + torch.randn(len(inputs), generator=self.generator)
        return inputs, label


@pytest.mark.filterwarnings("ignore:Most rows of the sweep could not be used")
def test_with_random_augmentation_no_row_is_used_and_training_is_plain():
    class Noisy(Changing):
        """Draws from the global generator, as augmentations do; the sweep leaves no trace on it."""

        def __getitem__(self, index):
            inputs, label = self.data[index]
            return inputs + torch.randn(len(inputs)), label

    def train(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module = cls()
        fit = trainer(callbacks=callbacks)
        fit.fit(module, DataLoader(Noisy(None), batch_size=8, shuffle=True))
        return list(module.state_dict().values()), fit.callback_metrics

    plain, _ = train(Everything, [])
    callback = VAMOCallback(probes=3, mu=1e-2, control="replay")
    with pytest.warns(UserWarning, match="differs from the batch that the sweep saw") as caught:
        augmented, _ = train(VAMOEverything, [callback])
    assert sum("differs from" in str(warning.message) for warning in caught) == 1
    assert same(plain, augmented)
    assert callback.report.rows_unused == 6
    assert callback.report.steps == 0


class Zeroing(VAMOCallback, RunObserver):
    """Trains with some rows of the table at zero."""

    def __init__(self, rows, ranks=1, **arguments):
        super().__init__(**arguments)
        self.zeroed = rows
        self.ranks = ranks

    def on_snapshot(self, fit, module, snapshot):
        for row in self.zeroed:
            # One of the ranks' parts of the row is missing from the mean.
            others = sum(self.parts(snapshot, row)) if self.ranks > 1 else 0.0
            snapshot.correction.control.rows[row] = others / self.ranks

    def parts(self, snapshot, row):
        own = snapshot.correction.own.correction(row).clone()
        parts = [torch.empty_like(own) for _ in range(self.ranks)]
        torch.distributed.all_gather(parts, own)
        return parts[1:]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"control": Replay(every_n_epochs=2)}])
def test_the_row_of_a_batch_that_differs_is_not_used(options):
    options = dict(options)
    every = {"control": options.pop("control", "replay")}

    def train(callback, **loader):
        L.seed_everything(0, verbose=False)
        module = Regression()
        fit = trainer(callbacks=[callback], max_epochs=2, **options)
        fit.fit(module, DataLoader(Changing(lambda index: 16 <= index < 24), batch_size=8, **loader))
        return list(module.state_dict().values()), fit.callback_metrics

    # Not adaptive: rows of zeros are a regression's data too. A fixed radius: "auto" measures its own on as many batches as fit
    # the memory, which are fewer where the size of a batch cannot be told.
    arguments = {"probes": 4, "directions": OrthonormalDirections(), "alpha": "theory", "mu": 1e-3, "seed": 1, **every}
    with pytest.warns(UserWarning, match="differs from the batch that the sweep saw"):
        weights, metrics = train(VAMOCallback(**arguments))
    assert metrics["vamo/rows_unused"] == 1
    zeroed, _ = train(Zeroing([2], **arguments), collate_fn=Opaque)
    used, metrics = train(VAMOCallback(**arguments), collate_fn=Opaque)
    assert metrics["vamo/rows_unused"] == 0
    assert same(weights, zeroed)
    assert not same(weights, used)


class Opaque:
    """A batch that has no fingerprint, as its tensors are not found."""

    def __init__(self, samples):
        self.parts = default_collate(samples)

    def __getitem__(self, index):
        return self.parts[index]

    def to(self, device):
        return self


class OpaqueData(Data):
    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.collate_fn = Opaque
        return loader


STRATEGIES = {
    "plain": {},
    "unused parameters": {"find_unused_parameters": True},
    "bucket view": {"gradient_as_bucket_view": True},
}


@pytest.mark.parametrize(("accumulate", "strategy"), [(1, "plain"), (1, "unused parameters"), (2, "bucket view")])
@pytest.mark.filterwarnings("ignore:A training batch differs")
@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
def test_a_batch_that_differs_on_one_of_two_ranks(accumulate, strategy, tmp_path):
    """Its rank alone knows; all ranks stay the same to the bit, and only that rank's part of the row is missing."""
    arguments = STRATEGIES[strategy]

    class Wide(Changing):
        def __init__(self):
            # Rank 0 has the even samples, four to a batch: all of its third batch.
            super().__init__(lambda index: index in (16, 18, 20, 22))

        def __getitem__(self, index):
            inputs, label = super().__getitem__(index)
            return inputs.double(), label

    def train(name, callback, **data):
        options = {**data, "devices": 2, "batch_size": 4, "precision": "64-true", "use_distributed_sampler": False}
        options |= {"accumulate_grad_batches": accumulate, "strategy": DDPStrategy(start_method="fork", **arguments)}
        first, second = run(Regression(), tmp_path / name, Wide(), callback=callback, **options)
        assert same(list(first["state"].values()), list(second["state"].values()))
        return first["state"], first["metrics"]

    vamo = {"probes": 4, "directions": OrthonormalDirections(), "alpha": "theory", "mu": 1e-4, "seed": 1}
    state, metrics = train("vamo", VAMOCallback(**vamo))
    assert metrics["vamo/rows_unused"] == 0.5  # the mean over the ranks
    expected, _ = train("zeroed", Zeroing([2], ranks=2, **vamo), datamodule=OpaqueData)
    used, _ = train("used", VAMOCallback(**vamo), datamodule=OpaqueData)
    for name, weight in state.items():
        assert torch.allclose(weight, expected[name], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(state["net.0.weight"], used["net.0.weight"], rtol=1e-6)
