"""SVRG where training is less than plain: shards, scaled gradients, streams, augmentation, batches that are lost, memory."""

import contextlib

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from lightning_vamo import NonFiniteLossError, SVRGCallback, UnsupportedError, VAMOMixin
from lightning_vamo.loop.control import memory
from tests.support.modules import Data, Perceptron, VAMOEverything, classification_data, loaders, trainer
from tests.support.processes import in_processes
from tests.support.ranks import Data as Dealt
from tests.support.ranks import Regression, run
from tests.support.sharded import VAMO, Plain, close, train

WAYS = ["recompute", "cache", "carry"]


class Network(VAMOMixin, Perceptron):
    pass


def fitted(callback, data=None, module=None, seed=0, **options):
    L.seed_everything(seed, verbose=False)
    module = module() if isinstance(module, type) else module or Network()
    fit = trainer(callbacks=[callback], max_epochs=3, **options)
    fit.fit(module, DataLoader(classification_data(40), 8) if data is None else data)
    return module, fit


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


FOUR = {"limit_train_batches": 4}


def sharded_and_not(folder):
    found = {}
    for gradients in WAYS:
        for alpha in (1.0, "adaptive"):
            callbacks = [SVRGCallback(alpha, gradients=gradients, seed=1) for _ in range(2)]
            options = {**FOUR, "accumulate_grad_batches": 1 if alpha == 1.0 else 2}
            runs = [train(VAMO, [callback], sharded, torch.float64, **options) for sharded, callback in enumerate(callbacks)]
            found[f"{gradients} {alpha}"] = [*runs, [callback.report.variance_removed for callback in callbacks]]
    return {"found": found, "plain": train(Plain, [], False, torch.float64, **FOUR)}


def test_over_shards_training_is_what_it_is_with_ddp(tmp_path):
    first, second = in_processes(sharded_and_not, tmp_path)
    for name, (ddp, fsdp, removed) in first["found"].items():
        assert close(fsdp, ddp, 1e-12), name
        assert not close(ddp, first["plain"], 1e-4), name
        assert removed[0] == pytest.approx(removed[1], rel=1e-9)
        assert all(torch.equal(fsdp[key], second["found"][name][1][key]) for key in fsdp)


@pytest.mark.parametrize("gradients", WAYS)
def test_two_ranks_accumulate_as_one(gradients, tmp_path):
    data = TensorDataset(*classification_data(56).tensors)  # 7 batches, in steps of three
    options = {"precision": "64-true", "use_distributed_sampler": False, "accumulate_grad_batches": 3, "max_epochs": 3}
    make = lambda: SVRGCallback("adaptive", gradients=gradients)  # noqa: E731
    [one] = run(Regression(), tmp_path / "one", data, devices=1, batch_size=8, callback=make(), **options)
    two = run(Regression(), tmp_path / "two", data, devices=2, batch_size=4, callback=make(), datamodule=Dealt, **options)
    for name, weight in one["state"].items():
        assert torch.equal(two[0]["state"][name], two[1]["state"][name])
        assert torch.allclose(two[0]["state"][name], weight, rtol=1e-10, atol=1e-10)


class OnlyScaled(MixedPrecision):
    """Scales losses by a power of two, and computes in full precision."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def forward_context(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("gradients", WAYS)
def test_the_scale_of_a_grad_scaler_changes_nothing(gradients):
    ends = []
    for options in ({}, {"plugins": [OnlyScaled()]}):
        callback = SVRGCallback("adaptive", gradients=gradients, seed=1)
        module, _ = fitted(callback, accumulate_grad_batches=2, **options)
        ends.append((weights(module), callback.report.variance_removed))
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-6, atol=1e-7)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=1e-5)


class Stream(IterableDataset):
    """Samples that come in order; endless, or not to be copied, if asked to be."""

    def __init__(self, lock=None):
        self.data = classification_data(40)
        self.lock = lock

    def __iter__(self):
        return iter(self.data)


class Sized(Stream):
    def __len__(self):
        return len(self.data)


sized = pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")


@sized
def test_streams_are_read_a_second_time_for_the_mean():
    callback, table = SVRGCallback(), SVRGCallback()
    module, _ = fitted(callback, DataLoader(Sized(), 8))
    assert callback.report.backward_evaluations == 3 * 5 * 3
    expected, _ = fitted(table, DataLoader(classification_data(40), 8))
    assert torch.allclose(weights(module), weights(expected), rtol=1e-6, atol=1e-7)


@sized
def test_streams_that_cannot_be_read_twice_and_endless_ones_are_refused():
    with pytest.raises(UnsupportedError, match=r"SVRG takes the gradient of all the data.*cannot be read a second time"):
        fitted(SVRGCallback(), DataLoader(Sized(lock=(x for x in ())), 8))
    with pytest.raises(UnsupportedError, match=r"SVRG takes the gradient of all the data.*has no length.*limit_train_batches"):
        fitted(SVRGCallback(), DataLoader(Stream(), 8))
    for gradients in ("cache", "carry"):
        with pytest.raises(UnsupportedError, match=r"an IterableDataset.*set gradients='recompute', or train with alpha=0"):
            fitted(SVRGCallback(gradients=gradients), DataLoader(Sized(), 8))


class Augmented(Dataset):
    """Another sample for the same index each time."""

    def __init__(self):
        self.data = classification_data(40)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs + torch.rand(1), label


def test_a_batch_that_is_not_the_sweeps_is_left_alone():
    callback = SVRGCallback(gradients="cache")
    with pytest.warns(UserWarning, match=r"so its row is not used.* svrg/rows_unused.*set gradients='recompute'.*alpha=0"):
        _, fit = fitted(callback, DataLoader(Augmented(), 8))
    assert fit.callback_metrics["svrg/rows_unused"] == 5
    assert callback.report.variance_removed is None
    assert str(callback.report).startswith("SVRG: ")


class Bad(Network):
    """Its third batch is not a number until the first step of training."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.trainer.global_step == 0 and batch_idx == 2 else loss


@pytest.mark.filterwarnings("ignore:`training_step` returned None")
@pytest.mark.parametrize("gradients", WAYS)
def test_skipped_batches_have_no_row(gradients):
    class Skipping(Network):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    callback = SVRGCallback(gradients=gradients)
    warns = pytest.warns(UserWarning, match="The gradients of 1 of 5") if gradients == "cache" else contextlib.nullcontext()
    with warns:
        module, _ = fitted(callback, module=Skipping)
    rest = torch.utils.data.Subset(classification_data(40), [i for i in range(40) if i // 8 != 1])
    expected, _ = fitted(SVRGCallback(gradients=gradients), DataLoader(rest, 8))
    assert torch.allclose(weights(module), weights(expected), rtol=1e-5, atol=1e-6)
    assert callback.report.batches == 12


@pytest.mark.parametrize("gradients", ["recompute", "cache"])
def test_a_gradient_that_is_not_finite_is_left_out_of_the_mean(gradients):
    warns = pytest.warns(UserWarning, match="The gradients of 1 of 5") if gradients == "cache" else contextlib.nullcontext()
    with warns:
        module, fit = fitted(SVRGCallback(gradients=gradients), module=Bad)
    assert weights(module).isfinite().all()
    assert fit.callback_metrics["svrg/variance_removed"] != 0


def test_gradients_of_which_none_is_finite_are_refused_before_a_step():
    class Never(Network):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    module = Never()
    before = weights(module)
    with pytest.raises(NonFiniteLossError, match="No training batch has a finite gradient at the snapshot"):
        fitted(SVRGCallback(), module=module)
    assert torch.equal(weights(module), before)


@pytest.mark.parametrize("gradients", ["cache", "carry"])
def test_a_table_that_does_not_fit_is_refused_with_its_size(gradients, monkeypatch):
    d = sum(p.numel() for p in Network().parameters())
    monkeypatch.setattr(memory, "available", lambda device: 5 * d * 4 - 1)
    with pytest.raises(UnsupportedError, match=rf"A table of 5 gradients of {d} numbers takes 1.06e-06 GB, but cpu has.*free"):
        fitted(SVRGCallback(gradients=gradients))
    fitted(SVRGCallback(gradients=gradients, table_dtype="bfloat16"))
    monkeypatch.setattr(memory, "available", lambda device: 5 * d * 4)
    fitted(SVRGCallback(gradients=gradients))


def test_free_memory_is_told():
    assert 10**6 < memory.available(torch.device("cpu")) < 10**14


@pytest.mark.parametrize("gradients", WAYS)
def test_parameters_that_are_frozen_and_thawed(gradients):
    class Thawing(VAMOEverything):
        def on_train_epoch_start(self):
            self.net[0].requires_grad_(self.current_epoch > 0)

    module, start = Thawing(), None
    start = module.net[0].weight.detach().clone()
    module, fit = fitted(SVRGCallback(gradients=gradients), loaders()[0], module)
    assert not torch.equal(module.net[0].weight, start)
    assert fit.callback_metrics["svrg/variance_removed"] != 0


def test_reloaded_data_loses_carried_rows_with_a_warning():
    callback, options = SVRGCallback(gradients="carry"), {"reload_dataloaders_every_n_epochs": 1, "limit_val_batches": 0}
    with pytest.warns(UserWarning, match=r"carried from epoch to epoch are lost.*or set gradients='cache'"):
        trainer(callbacks=[callback], max_epochs=3, **options).fit(VAMOEverything(), datamodule=Data())
    assert callback.report.variance_removed is None
