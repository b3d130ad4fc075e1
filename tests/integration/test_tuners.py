"""Tuners that train within the training: Lightning's finders of the learning rate and the batch size, at milestones."""

import functools
import gc

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from torch import nn
from torch.utils.data import DataLoader

from lightning_vamo import VAMOCallback, with_vamo
from tests.support.modules import classification_data, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The training DataLoader was made anew")
MILESTONES = (1, 2)


class RateAtMilestones(LearningRateFinder):
    """Finds a learning rate at some epochs' starts, as Lightning's documentation shows."""

    def on_fit_start(self, trainer, pl_module):
        return

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in MILESTONES:
            self.lr_find(trainer, pl_module)


class SizeAtMilestones(BatchSizeFinder):
    """Finds a batch size at some epochs' starts, as Lightning's documentation shows."""

    def on_fit_start(self, trainer, pl_module):
        return

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in MILESTONES:
            self.scale_batch_size(trainer, pl_module)


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.lr = 0.05
        self.net = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.2))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.5)


class Data(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.batch_size = 8

    def train_dataloader(self):
        return DataLoader(classification_data(48), self.batch_size, shuffle=True)


def rate():
    return RateAtMilestones(num_training_steps=4, update_attr=True, attr_name="lr", max_lr=0.05, early_stop_threshold=None)


def size():
    return SizeAtMilestones(mode="power", steps_per_trial=1, init_val=4, max_trials=2)


TUNERS = {"learning rate": lambda: [rate()], "batch size": lambda: [size()], "both": lambda: [size(), rate()]}


def fit(tuners, callbacks, tmp_path, *, mixed=True, last=False):
    L.seed_everything(0, verbose=False)
    module = with_vamo(Classifier()) if mixed else Classifier()
    both = [*callbacks, *tuners] if last else [*tuners, *callbacks]
    run = trainer(callbacks=both, max_epochs=4, tmp_path=tmp_path)
    run.fit(module, datamodule=Data())
    return module.state_dict(), run


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Each trial of a tuner collects garbage, and need not look at what the tests before this file have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    """Runs without the mixin, each made once for all that are compared with it."""
    return functools.cache(lambda name: fit(TUNERS[name](), [], tmp_path_factory.mktemp("plain"), mixed=False))


@pytest.mark.parametrize(
    ("name", "control", "last"),  # each pair of them
    [
        ("learning rate", "replay", False),
        ("learning rate", "recompute", True),
        ("batch size", "replay", True),
        ("batch size", "recompute", False),
        ("both", "replay", False),
        ("both", "recompute", True),
    ],
)
def test_a_tuner_within_the_training_sees_plain_steps(name, control, last, plain_run, tmp_path):
    plain, run = plain_run(name)
    callback = VAMOCallback(probes=2, alpha=0.0, mu=1e-2, control=control, seed=1)
    state, other = fit(TUNERS[name](), [callback], tmp_path, last=last)
    assert other.global_step == run.global_step
    assert all(torch.equal(state[key], value) for key, value in plain.items())
    assert callback.report.snapshots >= 1


@pytest.mark.parametrize("control", ["replay", "carry", "recompute"])
@pytest.mark.parametrize("name", TUNERS)
def test_corrections_go_on_after_a_tuner(name, control, tmp_path):
    callback = VAMOCallback(probes=2, seed=1, mu=0.01, control=control)
    _, run = fit(TUNERS[name](), [callback], tmp_path)
    report = callback.report
    assert report.backward_evaluations - report.warmup_evaluations == run.global_step
    # After a batch size finder alone, Lightning trains a milestone's epoch on one batch, and counts that as its seventh.
    lost = len(MILESTONES) if name == "batch size" else 0
    if control != "carry":  # whose rows are lost with the loader that a tuner makes anew, and then fill again
        assert report.snapshots == 4 - lost
        assert report.steps == run.global_step - lost
        assert run.callback_metrics["vamo/rows_unused"] == 0


def test_without_probes_a_tuner_is_lightnings_own(plain_run, tmp_path):
    plain, _ = plain_run("both")
    state, _ = fit(TUNERS["both"](), [VAMOCallback(probes=0)], tmp_path)
    assert all(torch.equal(state[name], value) for name, value in plain.items())
