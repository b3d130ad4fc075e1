"""The sweep leaves no trace."""

import random

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_vamo import NonFiniteLossError, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections, SphereDirections
from lightning_vamo.loop.guards.module_state import ModuleState
from tests.support.meddling import Meddling, VAMOMeddling, contents, everything
from tests.support.modules import MemoryLogger, VAMOEverything, loaders, trainer
from tests.support.watched import Compare, WatchedSweeps


@pytest.mark.parametrize(
    ("precision", "difference", "cls"),  # each pair of them
    [
        ("32-true", "forward", VAMOEverything),
        ("32-true", "central", VAMOMeddling),
        ("bf16-mixed", "forward", VAMOMeddling),
        ("bf16-mixed", "central", VAMOEverything),
        ("64-true", "forward", VAMOMeddling),
        ("64-true", "central", VAMOEverything),
    ],
)
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_state_before_and_after_the_sweep(precision, difference, cls):
    L.seed_everything(0, verbose=False)
    radius = "auto" if (precision, difference) == ("32-true", "central") else 1e-3
    callbacks = [VAMOCallback(probes=3, difference=difference, mu=radius), compare := Compare(everything, "sweep")]
    options = {"logger": MemoryLogger("somewhere"), "precision": precision, "limit_train_batches": 7}
    trainer(callbacks=callbacks, max_epochs=2, **options).fit(cls(), *loaders())
    assert compare.compared == 2


def test_a_meddling_module_trains_as_without_the_sweep():
    def run(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module, logger = cls(), MemoryLogger("somewhere")
        trainer(callbacks=callbacks, logger=logger).fit(module, *loaders())
        return [
            contents(v)
            for v in (dict(module.state_dict()), module.history, module.average, module.moving, module.tree["visits"])
        ], logger.rows

    plain = run(Meddling, [])
    for arguments in ({}, {"directions": GradientSubspaceDirections(None), "mu": 1e-3}):  # factored, by default, and dense
        assert run(VAMOMeddling, [VAMOCallback(probes=2, alpha=0.0, **arguments)]) == plain


class Fields:
    """A batch that is an object of its own."""

    def __init__(self, items):
        self.x, self.y = (torch.stack(part) for part in zip(*items, strict=True))

    def to(self, device):
        return self


def test_batches_that_are_objects_are_the_same_at_each_evaluation():
    class Objects(VAMOEverything):
        def training_step(self, batch, batch_idx):
            batch.x = batch.x / 2
            labels = batch.y
            del batch.y
            return super().training_step((batch.x, labels), batch_idx)

    callback = VAMOCallback(probes=2, mu=1e-3)
    data = DataLoader(loaders()[0].dataset, batch_size=8, collate_fn=Fields)
    trainer(callbacks=[callback]).fit(Objects(), data)
    assert -0.5 < callback.report.variance_removed < 0.5


def test_between_two_batches_the_weights_are_the_snapshots():
    class Looking(VAMOEverything):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            seen.append(self.net[0].weight.detach().clone())
            return batch

    seen = []
    trainer(callbacks=[VAMOCallback(probes=2, mu=1e-2)], max_epochs=1, limit_train_batches=4).fit(Looking(), loaders()[0])
    sweep = seen[1:5]  # the first is of the epoch's first batch, the sweep comes next
    assert all(torch.equal(weight, seen[0]) for weight in sweep)


def test_gradients_that_a_hook_looks_at_are_kept():
    class Looking(VAMOEverything):
        def on_before_zero_grad(self, optimizer):
            seen.append(self.net[0].weight.grad is not None)

    seen = []
    trainer(callbacks=[VAMOCallback(probes=1, mu=1e-2)], max_epochs=2).fit(Looking(), loaders()[0])
    assert seen.count(False) == 1


class Failing(VAMOEverything):
    """Fails at the third batch: of the warm-up, which takes gradients, or of the sweep, which does not."""

    def __init__(self, in_warmup):
        super().__init__()
        self.in_warmup = in_warmup

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        silent = not isinstance(self.trainer.loggers[0], MemoryLogger)
        if silent and batch_idx == 2 and torch.is_grad_enabled() == self.in_warmup:
            raise RuntimeError("out of memory, say")
        return loss


@pytest.mark.parametrize("in_warmup", [True, False])
def test_an_error_before_the_first_step_propagates_and_leaves_no_trace(in_warmup):
    L.seed_everything(0, verbose=False)
    compare, module = Compare(everything, "warm-up" if in_warmup else "sweep"), Failing(in_warmup)
    weights = contents(dict(module.state_dict()))
    callbacks = [VAMOCallback(probes=3), compare]
    fit = trainer(callbacks=callbacks, logger=MemoryLogger("somewhere"), num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        fit.fit(module, *loaders())
    assert compare.compared == 1
    assert contents(dict(module.state_dict())) == weights
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.automatic_optimization
    assert "log" not in vars(module)


class NotANumber(VAMOEverything):
    def probe_loss(self, batch, batch_idx):
        return super().probe_loss(batch, batch_idx) * float("nan")


def test_losses_that_are_not_finite_at_the_snapshot_are_refused_and_leave_no_trace():
    compare, module = Compare(everything, "sweep"), NotANumber()
    weights = contents(dict(module.state_dict()))
    with pytest.raises(
        NonFiniteLossError, match="No batch of the epoch has a finite training loss at the snapshot; the first loss is nan"
    ):
        trainer(callbacks=[VAMOCallback(probes=2), compare], num_sanity_val_steps=0).fit(module, *loaders())
    assert compare.compared == 1
    assert contents(dict(module.state_dict())) == weights


def test_dropout_is_the_same_for_all_evaluations_of_a_batch():
    class Noise(VAMOMixin, L.LightningModule):
        """Its loss is dropout noise, and a slope of one along the only parameter."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def training_step(self, batch, batch_idx):
            noise = torch.rand(1) + float(np.random.rand()) + random.random()
            return (self.weight + 100 * noise).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    callback = WatchedSweeps(probes=1, mu=0.5)
    trainer(callbacks=[callback], max_epochs=1).fit(Noise(), loaders()[0])
    slopes = callback.sweeps[0].deltas.abs()
    assert slopes == pytest.approx(torch.ones_like(slopes), abs=1e-3)


def test_module_state_puts_back_what_it_says():
    module = Meddling()
    state = ModuleState(module)
    before = {name: contents(value) for name, value in vars(module).items() if name[0] != "_" and name != "tree"}
    module.history["losses"].extend(range(5))
    module.history["nested"]["deep"].append(1)
    module.history["other"] = 1
    module.seen = [3]
    module.calls = -1
    module.added = 1
    module.average += 1
    module.scaler.zero_()
    module.gone = torch.ones(1)
    module.net[1].eval()
    module.net[0].weight.requires_grad_(False)
    module.tree["child"][0]["parent"]["visits"] = 3
    state.restore()
    after = {name: contents(value) for name, value in vars(module).items() if name[0] != "_" and name != "tree"}
    assert module.tree["visits"] == 0
    assert before == after
    assert module.scaler.tolist() == [1, 1, 1]
    assert module.gone is None
    assert all(m.training for m in module.modules())
    assert all(p.requires_grad for p in module.net.parameters())


class Teaching(VAMOEverything):
    """A teacher that is stepped by hand, in the ways in which that is done."""

    way = None

    def __init__(self):
        super().__init__()
        self.teacher = torch.nn.Linear(2, 2)
        self.register_buffer("queue", torch.zeros(3))
        self.teacher.requires_grad_(False)
        torch.nn.init.zeros_(self.teacher.weight)

    def training_step(self, batch, batch_idx):
        weight = self.teacher.weight
        if self.way == "rebound":
            weight.data = weight.data + 1
            self.queue.data = self.queue.data + 1
        elif self.way == "data":
            weight.data.add_(1)
            self.queue.data.add_(1)
        elif self.way == "data, sometimes" and batch_idx % 3 == 2:
            weight.data.add_(3)
            self.queue.data.add_(3)
        elif self.way == "after" and batch_idx == 8:
            with torch.no_grad():
                weight.mul_(1.0)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *arguments):
        if self.way == "after":
            self.teacher.weight.data.add_(1)
            self.queue.data.add_(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


@pytest.mark.parametrize("control", ["replay", "recompute"])
@pytest.mark.parametrize("way", ["rebound", "data", "data, sometimes", "after"])
def test_a_teacher_is_stepped_once_per_step(way, control, monkeypatch):
    monkeypatch.setattr(Teaching, "way", way)
    module = Teaching()
    trainer(callbacks=[VAMOCallback(probes=2, mu=1e-2, control=control)], max_epochs=2).fit(module, *loaders())  # 12 batches
    assert module.teacher.weight.unique().tolist() == module.queue.unique().tolist() == [24]


class Transient(VAMOMixin, L.LightningModule):
    """A module that each batch changes in a way that the next batch sees, or undoes."""

    def __init__(self, sees):
        super().__init__()
        self.net = nn.Linear(6, 3)
        self.bn = nn.BatchNorm1d(6)
        self.register_buffer("scale", torch.ones(()))
        self.hard, self.sees = False, sees

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if self.sees:
            was, self.hard = self.hard, batch_idx % 2 == 0
            loss = loss * (1.5 if was else 1.0) * self.scale * (1 + self.bn.running_var.mean())
        return loss

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.sees:
            self.bn(batch[0])
            self.scale.data.copy_(batch[0].abs().mean() + 1)
        return batch

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.0)


def test_a_batch_does_not_see_what_the_batches_before_it_have_changed():
    def deltas(sees):
        L.seed_everything(0, verbose=False)
        callback = WatchedSweeps(probes=3, mu=1e-2, seed=1, directions=SphereDirections())
        options = {"max_epochs": 1, "limit_train_batches": 12, "precision": "64-true"}
        trainer(callbacks=[callback], **options).fit(Transient(sees), *loaders())
        return callback.sweeps[0].deltas

    factors = deltas(True) / deltas(False)  # each batch has one of its own
    assert torch.allclose(factors, factors[:, :1].expand_as(factors))


def test_a_loader_that_gives_the_same_list_again_gives_each_batch():
    def collated(fresh):
        held = [None, None]

        def collate(items):
            held[:] = torch.utils.data.default_collate(items)
            return list(held) if fresh else held

        return collate

    def deltas(fresh):
        L.seed_everything(0, verbose=False)
        callback = WatchedSweeps(probes=3, mu=1e-2, seed=1)
        data = DataLoader(loaders()[0].dataset, batch_size=8, collate_fn=collated(fresh))
        trainer(callbacks=[callback], max_epochs=1, num_sanity_val_steps=0, limit_val_batches=0).fit(VAMOEverything(), data)
        return callback.sweeps[0].deltas

    assert torch.equal(deltas(True), deltas(False))
