"""Ranks visit the same points in the same order, whatever their batches look like, and say so where they cannot."""

from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_vamo import VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import classification_data, trainer
from tests.support.processes import in_processes
from tests.support.ranks import Regression
from tests.support.sharded import VAMO, Batches, probing, train
from tests.support.watched import WatchedSweeps

VAMO_ARGUMENTS = {"probes": 3, "directions": OrthonormalDirections(), "mu": 1e-2, "seed": 1}


class Padded(Dataset):
    """Samples with padding that the module does not look at; that of rank 1 fills memory."""

    def __init__(self, padding):
        self.data = classification_data(72)
        self.padding = padding

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs, label, torch.zeros(self.padding)


class PaddedData(L.LightningDataModule):
    """Deals the samples out in order; the padding of rank 1 is of another size."""

    def __init__(self, padding):
        super().__init__()
        self.padding = padding

    def train_dataloader(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        data = Padded(self.padding if rank == 1 else 1)
        return DataLoader(data, 4, sampler=DistributedSampler(data, world, rank, shuffle=False))


class Contrastive(VAMOMixin, L.LightningModule):
    """Its loss takes the mean features of all ranks' batches, which is a collective in the step."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))

    def training_step(self, batch, batch_idx):
        features = self.net(batch[0])
        mean = self.all_gather(features.mean(dim=0), sync_grads=torch.is_grad_enabled()).mean(dim=0)
        return (features - mean).square().mean() + nn.functional.cross_entropy(features, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveSweeps(L.Callback):
    def __init__(self, folder, callback):
        self.folder = folder
        self.callback = callback

    def on_train_end(self, fit, module):
        torch.save(self.callback.sweeps[0].deltas, self.folder / f"{fit.global_rank}.pt")


@pytest.mark.filterwarnings("ignore:torch.distributed.nn.functional.all_gather is deprecated:FutureWarning")  # Lightning 2.6
@pytest.mark.parametrize("padding", [2**20, 3 * 2**18])
def test_a_collective_in_the_step_pairs_the_same_batch_and_point(padding, tmp_path):
    """Padding makes the groups of one rank's batches smaller; the rows are those without it."""

    def deltas(name, padding):
        folder = tmp_path / name
        folder.mkdir()
        L.seed_everything(3, verbose=False)
        callback = WatchedSweeps(**VAMO_ARGUMENTS)
        strategy = DDPStrategy(start_method="fork")
        options = {"strategy": strategy, "devices": 2, "max_epochs": 1, "use_distributed_sampler": False}
        fit = trainer(callbacks=[callback, SaveSweeps(folder, callback)], **options)
        fit.fit(Contrastive(), datamodule=PaddedData(padding))
        first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2))
        assert torch.equal(first, second)
        return first

    assert torch.allclose(deltas("padded", padding), deltas("plain", 1), rtol=1e-4, atol=1e-5)


class PaddedBatches(Batches):
    def train_dataloader(self):
        loader = super().train_dataloader()
        collate, size = loader.collate_fn, 2**22 if self.trainer.global_rank == 1 else 1
        loader.collate_fn = lambda samples: [*collate(samples), torch.zeros(size)]
        return loader


def sharded_with_and_without_padding(folder):
    found = []
    for batches in (Batches, PaddedBatches):
        callback = probing(OrthonormalDirections())
        weights = train(VAMO, [callback], dtype=torch.float64, batches=batches, max_epochs=1)
        found.append({"deltas": callback.sweeps[0].deltas, "weights": weights})
    return found


def test_shards_are_gathered_for_the_same_point(tmp_path):
    for plain, padded in in_processes(sharded_with_and_without_padding, tmp_path):
        assert torch.allclose(plain["deltas"], padded["deltas"], rtol=1e-9, atol=1e-12)
        assert all(torch.allclose(padded["weights"][name], weight) for name, weight in plain["weights"].items())


def attempt(folder, module, loader, **arguments):
    """Fit in one of two processes, whose loaders `loader` makes of the rank; returns the weights, or what went wrong."""
    torch.manual_seed(5)
    built = module()

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return loader(self.trainer.global_rank)

    callback = VAMOCallback(**{**VAMO_ARGUMENTS, **arguments})
    options = {"strategy": DDPStrategy(), "devices": 2, "use_distributed_sampler": False}
    try:
        trainer(callbacks=[callback], **options).fit(built, datamodule=Data())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return dict(built.state_dict())


class NoneOnOneRank(Regression):
    """Has no loss for a batch, where it is trained on and where it is swept."""

    def training_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1 and batch_idx == 2:
            return None
        return super().training_step(batch, batch_idx)


def same_loader(rank):
    return DataLoader(classification_data(48), 4)


def shorter_on_rank_one(rank):
    return DataLoader(classification_data(48 if rank == 0 else 40), 4)


# Within the time that `in_processes` waits, which is long: a rank that waits for another in vain would wait for longer.


@pytest.mark.parametrize("control", ["replay", "recompute"])
def test_a_batch_without_a_loss_on_one_rank_is_refused_as_lightning_refuses_it(control, tmp_path):
    _, second = in_processes(partial(attempt, control=control), tmp_path, NoneOnOneRank, same_loader)
    assert "`training_step` returned None on one of several ranks" in second


class OwnLossNone(Regression):
    """Leaves a batch out of the sweep alone, which may be done on one rank."""

    def probe_loss(self, batch, batch_idx):
        loss = super().probe_loss(batch, batch_idx)
        return None if self.trainer.global_rank == 1 and batch_idx == 2 else loss


def test_a_batch_that_one_rank_leaves_out_of_the_sweep_does_not_disturb_the_others(tmp_path):
    first, second = in_processes(attempt, tmp_path, OwnLossNone, same_loader)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("control", ["replay", "carry"])
def test_different_numbers_of_batches_are_answered_with_a_sentence(control, tmp_path):
    for message in in_processes(partial(attempt, control=control), tmp_path, Regression, shorter_on_rank_one):
        assert "different numbers of training batches, from 10 to 12" in message
        assert "limit_train_batches=10" in message
