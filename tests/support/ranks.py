"""Runs over two processes, and what each rank ends with."""

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from lightning_vamo import VAMOMixin
from tests.support.modules import Perceptron, trainer


class Regression(VAMOMixin, Perceptron):
    def __init__(self):
        super().__init__(lr=0.2, momentum=0.5)


class Save(L.Callback):
    """Keeps each rank's weights, buffers and figures in a file."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, fit, module):
        state = {"state": dict(module.state_dict()), "metrics": dict(fit.callback_metrics), "step": fit.global_step}
        torch.save(state, self.folder / f"{fit.global_rank}.pt")


class Data(L.LightningDataModule):
    """Deals the samples out to the ranks in order, so that a global batch is the same whatever the number of ranks."""

    def __init__(self, data, batch_size):
        super().__init__()
        self.data = data
        self.batch_size = batch_size

    def train_dataloader(self):
        world, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.data, world, rank, shuffle=False)
        return DataLoader(self.data, self.batch_size, sampler=sampler)


def run(module, folder, data, *, devices, batch_size, callback, strategy=None, datamodule=Data, behind=None, **options):
    L.seed_everything(5, verbose=False)
    torch.manual_seed(5)
    for layer in module.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    folder.mkdir()
    if devices == 2:
        options |= {"strategy": strategy or DDPStrategy(start_method="fork"), "devices": 2}
    callbacks = [Save(folder)] + ([callback] if callback else []) + ([behind] if behind else [])
    trainer(callbacks=callbacks, **options).fit(module, datamodule=datamodule(data, batch_size))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(devices)]


class Collectives(L.Callback):
    """Counts the collective calls of training steps; behind the VAMOCallback, whose sweep comes before it starts to count."""

    NAMES = ("all_reduce", "broadcast", "broadcast_object_list", "all_gather", "all_gather_object", "reduce", "barrier")

    def __init__(self, folder):
        self.folder = folder
        self.counts = []
        self.counting = False

    def on_fit_start(self, fit, module):
        for name in self.NAMES:
            setattr(torch.distributed, name, self.counted(getattr(torch.distributed, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            if self.counting:
                self.counts[-1] += 1
            return function(*args, **kwargs)

        return call

    def on_train_batch_start(self, *arguments):
        self.counts.append(0)
        self.counting = True

    def on_train_batch_end(self, *arguments):
        self.counting = False

    def on_train_end(self, fit, module):
        (self.folder / f"{fit.global_rank}.txt").write_text(" ".join(map(str, self.counts)))
