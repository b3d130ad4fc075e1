"""Batches are swept in groups, which changes what it costs and nothing else."""

from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader

from lightning_vamo import Replay, VAMOCallback
from lightning_vamo.core.probes.point import Point
from lightning_vamo.loop.plan.fingerprint import fingerprint
from lightning_vamo.loop.plan.tensors import fresh_copy, tensors_in
from lightning_vamo.loop.sweep import groups
from tests.support.modules import VAMOEverything, loaders, trainer
from tests.support.watched import WatchedSweeps


def sizes(batches, numbers):
    made = (SimpleNamespace(bytes=size) for size in batches)
    with patch.object(groups, "ALWAYS", 10):
        return [len(part) for part in groups.groups(made, [torch.zeros(numbers)])]


@pytest.mark.parametrize(
    ("batches", "numbers", "expected"),
    [
        ([8] * 40, 1000, [16, 16, 8]),  # as many as allowed
        ([8] * 7, 12, [3, 3, 1]),  # half of 48 bytes
        ([8] * 7, 13, [3, 3, 1]),
        ([100] * 3, 12, [1, 1, 1]),  # a batch may be larger than the model
        ([0] * 3, 1000, [1, 1, 1]),  # of unknown size
        ([], 10, []),
    ],
)
def test_the_size_of_a_group(batches, numbers, expected):
    assert sizes(batches, numbers) == expected


def swept(most, difference="forward", module=None, **options):
    L.seed_everything(0, verbose=False)
    callback = WatchedSweeps(probes=3, mu=1e-2, difference=difference, seed=1)
    module = module or VAMOEverything(features=6)
    with patch.object(groups, "MOST", most):
        trainer(callbacks=[callback], **options).fit(module, *loaders())
    return callback.sweeps, list(module.state_dict().values())


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_groups_measure_what_single_batches_do(difference, precision):
    """Dropout, BatchNorm and metrics included."""
    grouped, weights = swept(5, difference, precision=precision, limit_train_batches=7)
    single, expected = swept(1, difference, precision=precision, limit_train_batches=7)
    assert [sweep.evaluations for sweep in grouped] == [sweep.evaluations for sweep in single]
    for one, other in zip(grouped, single, strict=True):
        assert torch.equal(one.deltas, other.deltas)
        assert one.snr == other.snr
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))


def test_a_group_goes_to_each_point_once():
    calls = []
    perturb = Point.perturb

    def counted(self, *arguments):
        calls.append(arguments[1:])
        perturb(self, *arguments)

    with patch.object(Point, "perturb", counted):
        swept(16, max_epochs=1, limit_train_batches=10)
    assert len(calls) == 3 + 3 + 3  # the directions, and each of them at twice and at half the radius
    assert len({distance for _, distance in calls}) == 3


def test_what_a_transfer_hook_leaves_on_the_module_is_there_at_each_evaluation():
    class Hooked(VAMOEverything):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            self.shift = batch[0].mean()
            return batch

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] - self.shift, batch[1]), batch_idx)

    class Stateless(VAMOEverything):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0] - batch[0].mean(), batch[1]), batch_idx)

    hooked, weights = swept(5, module=seeded(Hooked))
    stateless, expected = swept(5, module=seeded(Stateless))
    assert torch.equal(hooked[0].deltas, stateless[0].deltas)
    assert all(torch.equal(one, other) for one, other in zip(weights, expected, strict=True))


def seeded(cls):
    with isolate_rng():
        torch.manual_seed(0)
        return cls()


@dataclass
class Pair:
    inputs: torch.Tensor
    extra: dict


class Encoding(dict):
    pass


def test_the_tensors_of_a_batch_are_found_and_copied():
    tensors = [torch.full((2,), float(i)) for i in range(6)]
    batch = [
        tensors[0],
        (tensors[1], "text", None),
        Pair(tensors[2], {"a": tensors[3]}),
        Encoding(ids=tensors[4], more=[tensors[5]]),
    ]
    assert [id(tensor) for tensor in tensors_in(batch)] == [id(tensor) for tensor in tensors]
    copy = fresh_copy(batch)
    for tensor, twin in zip(tensors_in(batch), tensors_in(copy), strict=True):
        assert torch.equal(tensor, twin)
        assert tensor.data_ptr() != twin.data_ptr()
    assert copy[1][1:] == ("text", None)
    assert type(copy[2]) is Pair
    assert type(copy[3]) is Encoding


# Fingerprints


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(10_000.0),
        torch.arange(6).view(2, 3).t(),
        torch.ones(3, dtype=torch.bfloat16),
        torch.ones(3, dtype=torch.complex64).conj(),
        torch.tensor(True),
        torch.zeros(0, 4),
        torch.ones(4, requires_grad=True),
        torch.ones(1).expand(5),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype}",
)
def test_fingerprints_know_equal_tensors(tensor):
    known = fingerprint([tensor])
    assert known is not None
    assert fingerprint({"x": tensor.detach().clone()}) == known
    assert fingerprint([tensor, tensor]) != known
    assert fingerprint([tensor.detach().reshape(1, *tensor.shape)]) != known


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.bool, torch.bfloat16, torch.int64])
def test_fingerprints_tell_shuffled_rows_and_other_numbers_apart(dtype):
    batch = torch.randint(2, (64, 1000), generator=torch.Generator().manual_seed(0)).to(dtype)
    assert len({fingerprint(batch), fingerprint(batch.flip(0)), fingerprint(~batch.bool()), fingerprint(batch[:32])}) == 4


@pytest.mark.parametrize("batch", [None, "text", {}, torch.eye(3).to_sparse(), torch.empty(3, device="meta"), object()])
def test_what_has_no_tensors_to_look_at_has_no_fingerprint(batch):
    assert fingerprint(batch) is None


@pytest.mark.parametrize(
    ("workers", "options"), [(1, {}), (0, {"precision": "64-true"}), (1, {"reload_dataloaders_every_n_epochs": 1})]
)
def test_batches_of_an_ordinary_dataset_keep_their_fingerprints(workers, options):
    callback = VAMOCallback(probes=1, mu=1e-3, control=Replay(every_n_epochs=2))
    fit = trainer(callbacks=[callback], max_epochs=3, val_check_interval=4, **options)
    fit.fit(VAMOEverything(), *loaders(num_workers=workers))
    assert fit.callback_metrics["vamo/rows_unused"] == 0
    assert callback.report.steps == 36


def test_a_batch_that_holds_no_tensors_is_not_checked():
    class Texts(VAMOEverything):
        def training_step(self, batch, batch_idx):
            inputs = torch.tensor([[float(x) for x in text.split()] for text in batch])
            return super().training_step((inputs, torch.arange(len(batch)) % 3), batch_idx)

    callback = VAMOCallback(probes=1, mu=1e-2)
    fit = trainer(callbacks=[callback], max_epochs=1)
    fit.fit(Texts(), DataLoader([f"{i} 1 2 3 4 5" for i in range(20)], batch_size=5))
    assert fit.callback_metrics["vamo/rows_unused"] == 0
    assert callback.report.steps == 4
