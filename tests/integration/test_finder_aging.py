"""The finder takes a few steps to see how rows age, advises carried rows where they pay, and undoes the steps."""

from dataclasses import replace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import Carry, ProbeFinding, UnsupportedError, VAMOCallback, find_probes
from lightning_vamo.finder.aging import _correlations, carried_share
from lightning_vamo.finder.finding import ProbeFigures
from tests.support.modules import trainer


class Noisy(L.LightningModule):
    """A linear loss, so that slopes do not change with the weights; with ``fresh``, they are drawn anew at each call."""

    def __init__(self, fresh=False):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(40))
        self.fresh = fresh
        self.optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        self.steps = []

    def training_step(self, batch, batch_idx):
        z = torch.randn_like(batch[0]) if self.fresh else batch[0]
        self.log("loss", 0.0)
        return (z @ self.weight).mean()

    def on_train_batch_end(self, *arguments):
        self.steps.append(self.trainer.global_step)

    def configure_optimizers(self):
        return self.optimizer


class Turning(Noisy):
    """The noise of a batch changes its sign again and again as the weights move."""

    def training_step(self, batch, batch_idx):
        z = batch[0]
        slopes = torch.cos(4000 * self.weight[-1].detach() * (1 + z[:, 1:2]))
        return (z[:, :1] * slopes * self.weight[:1]).mean() + 0.01 * (z @ self.weight).mean() + self.weight[-1]


def loader(batches=40):
    z = torch.randn(4 * batches, 40, generator=torch.Generator().manual_seed(3))
    z[:, 0] *= 20
    return DataLoader(TensorDataset(z), 4, shuffle=True)


def found(model, callback=None, **options):
    torch.manual_seed(7)
    fit = trainer(callbacks=[] if callback is None else [callback])
    return find_probes(fit, model, train_dataloaders=loader(), **{"seed": 1, "maximum": 2, **options})


def test_rows_that_do_not_age_are_advised():
    finding = found(Noisy())
    assert (finding.aged, finding.epoch_batches) == (20, 40)
    assert finding.carried == pytest.approx(sum(finding.spectrum), abs=0.03)
    assert finding.carried > 0.8
    assert finding.carries
    assert (finding.probes, finding.control) == (2, "carry")
    assert finding.advice == (
        f"carried rows along 2 directions remove {100 * finding.carried:.0f} % of the gradient noise at no extra evaluation:"
        " train with VAMOCallback(), or with probes=2 and control='carry'"
    )
    assert "carried" in finding.table()


def test_rows_that_know_nothing_of_the_next_epoch_are_not_advised():
    finding = found(Noisy(fresh=True))
    assert finding.carried < 0.3
    assert finding.carried < found(Noisy()).carried / 2


@pytest.mark.parametrize(
    "callback", [VAMOCallback(probes=2), VAMOCallback(control="replay"), VAMOCallback(control="recompute")]
)
def test_no_step_is_taken_where_rows_are_not_to_be_carried(callback, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *arguments, **options: pytest.fail("a step"))
    finding = found(Noisy(), callback)
    assert finding.carried is None
    assert not finding.carries


# ---- where the epoch ends before the rows have aged


class NoMore(Noisy):
    """Skips the rest of each epoch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 5 else None


def test_an_epoch_that_is_over_too_soon_leaves_the_rows_out():
    finding = found(NoMore())
    assert finding.carried is None
    assert finding.batches == 40
    only = found(NoMore(), VAMOCallback(control="carry"))
    assert (only.carried, only.probes, only.control) == (None, 0, "auto")
    assert only.advice.startswith("what carried rows would remove could not be measured here: measure at another checkpoint,")


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize(("step", "aged"), [(19, 20), (20, 0), (25, 0), (39, 0), (40, 20), (41, 20), (79, 0)])
def test_rows_age_within_the_epoch_of_a_checkpoint_or_not_at_all(step, aged, tmp_path):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=step, save_top_k=-1, filename="{step}")
    fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[saves])
    fit.fit(Noisy(), loader())
    model = Noisy()
    finding = find_probes(
        trainer(), model, train_dataloaders=loader(), seed=1, maximum=2, ckpt_path=str(tmp_path / f"step={step}.ckpt")
    )
    assert (finding.step, finding.aged, finding.batches) == (step, aged, 40)
    assert (finding.carried is None) == (aged == 0)
    assert torch.equal(model.weight, torch.zeros(40))


class NothingComes(torch.utils.data.Sampler):
    """Promises batches that never come."""

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(())


def test_a_loader_whose_batches_never_come():
    with pytest.raises(UnsupportedError, match="The fit ended before its first batch"):
        find_probes(trainer(), Noisy(), train_dataloaders=DataLoader(loader().dataset, batch_sampler=NothingComes()))


# ---- with control="carry"


ONLY_CARRIED = [
    {"control": "carry"},
    {"control": "carry", "probes": 2},
    {"control": Carry(sweep_every_n_epochs=5)},
    {"control": Carry(sweep_every_n_epochs=5), "probes": 2},
]


@pytest.mark.parametrize("arguments", ONLY_CARRIED, ids=str)
def test_carried_rows_are_advised_from_what_carried_rows_remove(arguments):
    finding = found(Noisy(), VAMOCallback(**arguments))
    assert finding.only_carries
    assert finding.carried > 0.8
    assert (finding.probes, finding.control) == (2, "carry")
    assert finding.advice.endswith("at no extra evaluation: train with VAMOCallback(), or with probes=2 and control='carry'")
    assert "those of a sweep in each epoch: control='carry' makes none" in finding.table()


@pytest.mark.parametrize("arguments", ONLY_CARRIED, ids=str)
def test_a_sweep_does_not_speak_for_rows_of_an_epoch_before(arguments):
    """Slopes that turn with the weights: of the noise a sweep removes nearly all, and rows of an epoch before nothing."""
    finding = found(Turning(), VAMOCallback(**arguments))
    assert max(figures.removed for figures in finding.figures) > 0.8
    assert finding.carried < 0.02
    assert (finding.probes, finding.control) == (0, "auto")
    assert finding.advice == (
        f"carried rows along 2 directions remove {100 * finding.carried:.0f} % of the gradient noise, which does not pay:"
        " train without probes"
    )
    forward = finding.forward_seconds / finding.step_seconds
    assert [figures.work for figures in finding.figures] == pytest.approx([1 + forward * (1 + q) for q in (1, 2)])


def test_one_carried_direction_is_singular():
    assert found(Noisy(), VAMOCallback(control="carry"), maximum=1).advice.startswith("carried rows along 1 direction remove ")


def test_a_free_sweep_is_no_rival_of_carried_rows():
    sweep = ProbeFigures(2, 0.0, 0.9, 0.0, 0.9, 0.0, 10.0, 1.0, 10.0)
    some = ProbeFinding(0, 0, 40, 40, 4.0, 1, 9.0, True, (0.5, 0.4), 0.1, "forward", 9.0, 1.0, 0.1, (sweep,), carried=0.5)
    assert (some.carries, some.probes, some.control) == (False, 2, "auto")
    only = replace(some, only_carries=True)
    for twice, what in ((True, "a sweep in each epoch"), (False, "rows that each step recomputes")):
        assert f"those of {what}: control='carry' makes none" in replace(only, comes_twice=twice).table()
    assert (only.carries, only.probes, only.control) == (True, 2, "carry")
    assert replace(only, carried=0.01).probes == 0
    assert replace(only, carried=0.01, comes_twice=False).advice.startswith("carried rows along 2 directions remove 1 % of")
    assert replace(only, noise_to_signal=0.5).advice.startswith("gradient noise does not slow the training down here")


def test_the_steps_are_undone():
    model = Noisy()
    found(model)
    assert torch.equal(model.weight, torch.zeros(40))
    assert model.weight.grad is None
    assert model.steps == []
    assert not model.optimizer.state


def test_a_fit_afterwards_is_the_fit_without_the_finder():
    def trained(look):
        model, fit = Noisy(), trainer(max_epochs=1)
        data = loader()
        if look:
            find_probes(fit, model, train_dataloaders=data, maximum=2, seed=1)
        torch.manual_seed(5)
        fit.fit(model, data)
        return model.weight, model.steps

    (weight, steps), (other, others) = trained(True), trained(False)
    assert torch.equal(weight, other)
    assert steps == others


def test_correlations_of_columns():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    slopes = torch.stack((2 * rows[:, 0], rows[:, 1] + noise[:, 1], noise[:, 2]), 1) + 5
    assert _correlations(rows, slopes).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.03)
    assert _correlations(rows, torch.zeros(4000, 3, dtype=torch.float64)).tolist() == [0, 0, 0]


def test_the_share_of_all_noise():
    assert carried_share(torch.tensor([0.5, 1.0], dtype=torch.float64), (0.4, 0.2)) == pytest.approx(0.4)
    assert carried_share(torch.tensor([1.0], dtype=torch.float64), (1.2,)) == 0.99
    assert carried_share(None, (0.4,)) is None
