"""A loss that is not a function of the parameters is noticed before any step depends on it."""

import itertools

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_vamo import Recompute, UnsupportedError, VAMOCallback, with_vamo
from lightning_vamo.core.directions import OrthonormalDirections
from tests.support.modules import Perceptron, classification_data, trainer
from tests.support.watched import WatchedCounts

COUNTER = itertools.count()  # out of the guards' reach


class Drifting(Perceptron):
    """Its loss grows with every call, from an epoch on, by what no guard can put back."""

    def __init__(self, since=0):
        super().__init__()
        self.since = since

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * (1 + 1e-3 * next(COUNTER)) if self.current_epoch >= self.since else loss


class Declared(Drifting):
    """Says which loss to probe."""

    def probe_loss(self, batch, batch_idx):
        return Perceptron.training_step(self, batch, batch_idx)


def fit(module, callback, epochs=4):
    L.seed_everything(1, verbose=False)
    run = trainer(callbacks=[callback], max_epochs=epochs)
    run.fit(with_vamo(module), DataLoader(classification_data(48), 6, shuffle=True))
    return run


ARGUMENTS = {"probes": 2, "directions": OrthonormalDirections(), "seed": 1}
CONTROLS = ["replay", "recompute", Recompute(every_n_train_steps=3)]
WAYS = (
    r"evaluated again with the same weights and random numbers: .*`probe_loss\(batch, batch_idx\)`.*control='carry'.*probes=0"
)


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_it_is_refused_before_the_first_step(control):
    module = Drifting()
    weights = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(UnsupportedError, match=WAYS):
        fit(module, VAMOCallback(control=control, **ARGUMENTS))
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), weights, strict=True))


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_later_on_the_steps_are_plain_with_one_warning(control):
    callback = WatchedCounts(control=control, **ARGUMENTS)
    with pytest.warns(UserWarning, match=WAYS) as caught:
        run = fit(Drifting(since=1), callback)
    assert sum("evaluated again" in str(warning.message) for warning in caught) == 1
    assert run.global_step == 32
    assert callback.counts[0] == 2
    assert callback.counts[-1] == 0
    assert callback.report.steps in (8, 9)  # those of the first epoch, and of a snapshot that goes on into the second


@pytest.mark.parametrize("control", CONTROLS, ids=str)
def test_a_loss_to_probe_is_a_way_out(control):
    callback = VAMOCallback(control=control, **ARGUMENTS)
    fit(Declared(), callback)
    assert callback.report.steps == 32


def test_carried_rows_evaluate_nothing_and_are_a_way_out():
    callback = VAMOCallback(control="carry", **ARGUMENTS)
    fit(Drifting(), callback)
    assert callback.report.steps == 24


@pytest.mark.parametrize("kind", ["dropout", "reordered sums"])
def test_what_the_arithmetic_explains_is_no_change(kind):
    class Nearly(Perceptron):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if kind == "dropout":
                return loss + torch.nn.functional.dropout(loss.detach()) * 0
            return loss * (1 + 2e-7 * (next(COUNTER) % 2))

    callback = VAMOCallback(**ARGUMENTS)
    fit(Nearly(), callback, epochs=1)
    assert callback.report.steps == 8
