"""The sweep leaves no trace."""

import random
from collections import OrderedDict, deque

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_vamo import NonFiniteLossError, VAMOCallback, VAMOMixin
from lightning_vamo.core.directions import GradientSubspaceDirections
from lightning_vamo.loop.guards import ModuleState
from tests.modules import Everything, MemoryLogger, VAMOEverything, WatchedSweeps, loaders, trainer


class Sealed(OrderedDict):
    """A dict that forbids what dicts do, as the outputs of some model libraries are."""

    def update(self, *args, **kwargs):
        raise TypeError("cannot be updated")

    clear = update


class Meddling(Everything):
    """Does in its step what steps should not, and do."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.register_buffer("scaler", torch.ones(3))
        self.register_buffer("gone", None)
        self.history = {"losses": [], "nested": {"deep": deque()}}
        self.names = set()
        self.average = torch.zeros(2)
        self.images = []
        self.moving = {"average": torch.zeros(1), "pair": [torch.zeros(2), 1]}
        self.teacher = nn.Linear(2, 2).requires_grad_(False)
        self.late = nn.Linear(2, 2).requires_grad_(False)
        self.register_buffer("expanded", torch.ones(1, 1).expand(4, 4), persistent=False)
        self.tree = {"visits": 0}
        self.tree["child"] = [{"parent": self.tree}]
        self.output = Sealed(loss=0)

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        inputs /= 2  # changes the batch itself
        batch.pop()
        loss = super().training_step((inputs, labels), batch_idx) * self.scaler.mean()
        self.scaler.mul_(1.01)
        self.history["losses"].append(1)
        self.history["nested"]["deep"].append(batch_idx)
        self.names.add(random.random())
        self.average += np.random.rand()
        self.new_attribute = batch_idx
        self.moving["average"].add_(1)
        self.moving["pair"][0].add_(2)
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(0.1)
            self.teacher.bias.data.mul_(0.9).add_(0.1)  # unseen by the version counter
            if batch_idx % 4 == 3:
                self.late.weight.add_(1)
        if not hasattr(self, "made_in_the_step"):
            self.made_in_the_step = nn.BatchNorm1d(6)
        self.made_in_the_step(inputs)
        self.trainer.should_stop = self.trainer.should_stop or (batch_idx == 3 and self.trainer.current_epoch == 5)
        self.tree["child"][0]["parent"]["visits"] += 1
        self.output = Sealed(loss=1)
        if self.loggers:
            assert self.logger.name == "memory"
            assert self.logger.save_dir == "somewhere"
        self.gone = torch.ones(1)
        self.net[1].eval()
        self.net[0].bias.requires_grad_(False)
        if self.logger is not None:
            self.logger.log_metrics({"by hand": float(loss.detach())}, step=batch_idx)
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        self.net[1].train()
        self.net[0].bias.requires_grad_(True)


class VAMOMeddling(VAMOMixin, Meddling):
    pass


def contents(value):
    """A copy of a value, down to plain numbers."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().tolist()
    if isinstance(value, dict):
        return {key: contents(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return [contents(item) for item in value]
    return value


def everything(fit, module):
    metrics = [m for m in module.modules() if hasattr(m, "_copy_state_dict")]
    own = ("seen", "calls", "history", "names", "average", "images", "lr", "moving")
    numpy_state = np.random.get_state()
    return {
        "weights and buffers": contents(dict(module.state_dict())),
        "addresses": [tensor.data_ptr() for tensor in [*module.parameters(), *module.buffers()]],
        "metrics": [contents(m._copy_state_dict()) for m in metrics],
        "metric internals": [(m._update_count, m._computed, m._forward_cache, m._is_synced, m._cache) for m in metrics],
        "modes": [m.training for m in module.modules()],
        "flags": [p.requires_grad for p in module.parameters()],
        "attributes": {name: contents(getattr(module, name)) for name in own if hasattr(module, name)},
        "names of attributes": sorted(module.__dict__),
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numpy_state[1].tolist(), numpy_state[2:]),
        "python": random.getstate(),
        "logged": {name: value.item() for name, value in fit.callback_metrics.items()},
        "loggers": [id(logger) for logger in fit.loggers],
        "rows": [len(logger.rows) for logger in fit.loggers],
        "optimizer": contents(fit.optimizers[0].state_dict()),
        "grad mode": torch.is_grad_enabled(),
        "global step": fit.global_step,
        "should stop": fit.should_stop,
        "submodules": [name for name, _ in module.named_modules()],
    }


class Compare(WatchedSweeps):
    """Compares the state before and after each sweep."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.compared = 0

    def watched(self, fit, module, *arguments):
        before = everything(fit, module)
        try:
            return super().watched(fit, module, *arguments)
        finally:
            after = everything(fit, module)
            assert [key for key in before if before[key] != after[key]] == []
            self.compared += 1


@pytest.mark.parametrize("difference", ["forward", "central"])
@pytest.mark.parametrize("cls", [VAMOEverything, VAMOMeddling])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.filterwarnings("ignore:The probe differences hardly stand out")
def test_state_before_and_after_the_sweep(cls, difference, precision):
    L.seed_everything(0, verbose=False)
    callback = Compare(probes=3, difference=difference)
    trainer(callbacks=[callback], max_epochs=3, logger=MemoryLogger("somewhere"), precision=precision).fit(cls(), *loaders())
    assert callback.compared == 3


@pytest.mark.parametrize("directions", [None, GradientSubspaceDirections(), GradientSubspaceDirections(None)])
def test_a_meddling_module_trains_as_without_the_sweep(directions):
    def run(cls, callbacks):
        L.seed_everything(0, verbose=False)
        module, logger = cls(), MemoryLogger("somewhere")
        trainer(callbacks=callbacks, logger=logger).fit(module, *loaders())
        return [
            contents(v)
            for v in (dict(module.state_dict()), module.history, module.average, module.moving, module.tree["visits"])
        ], logger.rows

    assert run(Meddling, []) == run(VAMOMeddling, [VAMOCallback(probes=2, directions=directions, alpha=0.0)])


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
    trainer(callbacks=[VAMOCallback(probes=2)], max_epochs=1, limit_train_batches=4).fit(Looking(), loaders()[0])
    sweep = seen[1:5]  # the first is of the epoch's first batch, the sweep comes next
    assert all(torch.equal(weight, seen[0]) for weight in sweep)


def test_gradients_that_a_hook_looks_at_are_kept():
    class Looking(VAMOEverything):
        def on_before_zero_grad(self, optimizer):
            seen.append(self.net[0].weight.grad is not None)

    seen = []
    trainer(callbacks=[VAMOCallback(probes=1)], max_epochs=2).fit(Looking(), loaders()[0])
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
    callback, module = Compare(probes=3), Failing(in_warmup)
    weights = contents(dict(module.state_dict()))
    fit = trainer(callbacks=[callback], logger=MemoryLogger("somewhere"), num_sanity_val_steps=0)
    with pytest.raises(RuntimeError, match="out of memory, say"):
        fit.fit(module, *loaders())
    assert callback.compared == (0 if in_warmup else 1)
    assert contents(dict(module.state_dict())) == weights
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.automatic_optimization
    assert "log" not in vars(module)


class NotANumber(VAMOEverything):
    def probe_loss(self, batch, batch_idx):
        loss = super().probe_loss(batch, batch_idx)
        return loss * float("nan") if batch_idx == 3 else loss


def test_a_loss_that_is_not_finite_at_the_snapshot_is_refused_and_leaves_no_trace():
    callback, module = Compare(probes=2), NotANumber()
    weights = contents(dict(module.state_dict()))
    with pytest.raises(NonFiniteLossError, match="batch 3 is nan at the snapshot: the training has diverged"):
        trainer(callbacks=[callback], num_sanity_val_steps=0).fit(module, *loaders())
    assert callback.compared == 1
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
    trainer(callbacks=[VAMOCallback(probes=2, control=control)], max_epochs=2).fit(module, *loaders())  # 12 batches
    assert module.teacher.weight.unique().tolist() == module.queue.unique().tolist() == [24]
