"""A module that changes whatever a sweep could leave changed, and all that there is to compare."""

import random
from collections import OrderedDict, deque

import numpy as np
import torch
from torch import nn

from lightning_vamo import VAMOMixin
from tests.support.modules import Everything


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
