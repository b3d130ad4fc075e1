"""Whole fits on a pretended GPU: the same as on a CPU, and no step and no forward pass of a sweep makes the program wait."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import MeZOCallback, S2PCallback, SVRGCallback, VAMOCallback, VAMOMixin, ZOSVRGCallback
from lightning_vamo.core.directions import (
    CoordinateDirections,
    GaussianDirections,
    GradientSubspaceDirections,
    OrthonormalDirections,
    RademacherDirections,
    SphereDirections,
)
from tests.support.pretend_gpu import numbers, pretended_gpu, strategy

FEW, MANY = 4, 8
"""Batches of an epoch, in two fits whose waits are compared."""


class Net(L.LightningModule):
    def __init__(self, width=16):
        super().__init__()
        self.table = nn.Embedding(20, 4)
        self.net = nn.Sequential(nn.Linear(12, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, 3))
        self.unused = nn.Parameter(torch.zeros(2))  # whose gradient is None

    def training_step(self, batch, batch_idx):
        x, words, y = batch
        return nn.functional.cross_entropy(self.net(torch.cat([x, self.table(words)], dim=1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Trained(VAMOMixin, Net):
    pass


class WritesToItsBatch(Trained):
    def training_step(self, batch, batch_idx):
        batch[0].data.mul_(0.5)
        return super().training_step([part.clone() for part in batch], batch_idx)


class SavesAt(L.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(callbacks, batches, cls=Trained, epochs=1, resume=None, **options):
    L.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(4 * batches, 8), torch.randint(20, (4 * batches,)), torch.randint(3, (4 * batches,)))
    module = cls()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_epochs=epochs, callbacks=callbacks, **quiet, **options)
    trainer.fit(module, DataLoader(data, batch_size=4), ckpt_path=resume)
    return numbers(module.state_dict().values()), trainer


def on_both(make, monkeypatch, batches=FEW, **options):
    """A fit on the CPU, the same on the pretended GPU, and what waited there."""
    plain, _ = fit([make()], batches, accelerator="cpu", devices=1, **options)
    with pretended_gpu(monkeypatch) as gpu:
        there, _ = fit([make()], batches, strategy=strategy(), **options)
    return plain, there, gpu.waits


def assert_near(some, others):
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def waits(make, monkeypatch, batches, **options):
    """What waits in a fit on the pretended GPU."""
    with pretended_gpu(monkeypatch) as gpu:
        fit([make()], batches, strategy=strategy(), **options)
    return gpu.waits


def growing(few, many):
    """The lines that wait once more for each batch that is added; numbers are compared more and more seldom."""
    return {line: count for line, count in (many - few).items() if count >= MANY - FEW}


LEARNED = GradientSubspaceDirections(warmup_batches=4)
GIVEN = {"mu": 1e-2}  # a radius that is measured is twice the work of all the rest; one method measures its own
METHODS = {
    "factored": lambda: VAMOCallback(probes=3, directions=LEARNED),
    "dense, central": lambda: VAMOCallback(
        probes=3, directions=GradientSubspaceDirections(rank=None, warmup_batches=4), difference="central", **GIVEN
    ),
    "rank 2, a falling coefficient": lambda: VAMOCallback(
        probes=2, directions=GradientSubspaceDirections(rank=2, warmup_batches=4), alpha="linear-decay", **GIVEN
    ),
    "carried": lambda: VAMOCallback(probes=3, directions=LEARNED, control="carry"),
    "recomputed": lambda: VAMOCallback(probes=3, directions=LEARNED, control="recompute", **GIVEN),
    "sphere": lambda: VAMOCallback(probes=2, directions=SphereDirections(), alpha="theory", **GIVEN),
    "Gaussian, seeded": lambda: VAMOCallback(probes=2, directions=GaussianDirections("seeded"), **GIVEN),
    "orthonormal": lambda: VAMOCallback(probes=2, directions=OrthonormalDirections(), **GIVEN),
    "coordinates": lambda: VAMOCallback(probes=2, directions=CoordinateDirections(), **GIVEN),
    "SVRG": lambda: SVRGCallback(),
    "SVRG, kept gradients": lambda: SVRGCallback(alpha="adaptive", gradients="cache"),
    "SVRG, carried gradients": lambda: SVRGCallback(gradients="carry"),
}
TWO_EPOCHS = ("carried", "SVRG, carried gradients")  # the first fills their tables


@pytest.mark.parametrize("name", METHODS)
def test_training_is_that_of_a_cpu_and_no_step_waits(name, monkeypatch):
    epochs = 2 if name in TWO_EPOCHS else 1
    plain, there, few = on_both(METHODS[name], monkeypatch, epochs=epochs)
    assert_near(plain, there)
    assert not growing(few, waits(METHODS[name], monkeypatch, MANY, epochs=epochs))


ONE_READ = {
    "MeZO": (lambda: MeZOCallback(probes=2), "_slopes"),
    "MeZO, signs": (lambda: MeZOCallback(directions=RademacherDirections(), update="gradient"), "_slopes"),
    "S2P": (lambda: S2PCallback(), "_losses"),
    "ZO-SVRG": (lambda: ZOSVRGCallback(probes=2), "_slopes"),
}
"""Methods that move the weights by a number of the host, and the function that reads it."""


@pytest.mark.parametrize("name", ONE_READ)
def test_without_a_backward_pass_each_batch_waits_once(name, monkeypatch):
    make, reads = ONE_READ[name]
    plain, there, few = on_both(make, monkeypatch)
    assert_near(plain, there)
    [(line, count)] = growing(few, waits(make, monkeypatch, MANY)).items()
    assert reads in line
    assert count == MANY - FEW


def test_a_step_that_writes_to_its_batch_behind_the_counters_is_noticed(monkeypatch):
    def make():
        return VAMOCallback(probes=2, directions=OrthonormalDirections(), alpha="theory", **GIVEN)

    plain, there, _ = on_both(make, monkeypatch, cls=WritesToItsBatch)
    assert_near(plain, there)


@pytest.mark.parametrize("name", ["factored", "carried", "SVRG, kept gradients", "MeZO"])
def test_a_checkpoint_from_within_an_epoch_resumes_there(name, monkeypatch, tmp_path):
    make = METHODS[name] if name in METHODS else ONE_READ[name][0]
    epochs, path = (2 if name in TWO_EPOCHS else 1), tmp_path / "within.ckpt"
    with pretended_gpu(monkeypatch):
        whole, _ = fit([make(), SavesAt(path, FEW * (epochs - 1) + 2)], FEW, epochs=epochs, strategy=strategy())
        again, _ = fit([make()], FEW, epochs=epochs, resume=path, strategy=strategy())
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one, other)
