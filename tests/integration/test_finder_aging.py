"""The finder takes a few steps to see how rows age, advises carried rows where they pay, and undoes the steps."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vamo import UnsupportedError, VAMOCallback, find_probes
from lightning_vamo.finder.aging import _correlations, carried_share
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
    assert finding.probes == 2
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
