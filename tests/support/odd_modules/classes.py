"""Modules that count on their classes, on the Trainer and in hooks."""

import torch

from tests.support.odd_modules.base import Odd, flat, kind


@kind("counter of the class")
class ClassCounter(Odd):
    calls = 0

    def prepare(self):
        type(self).calls = 0

    def odd(self, inputs):
        type(self).calls += 1
        return self.calls

    def state(self):
        return self.calls


@kind("attribute of the class that is new, and its list")
class ClassAttribute(Odd):
    history = None

    def prepare(self):
        type(self).history = []
        if hasattr(type(self), "late"):
            del type(self).late

    def odd(self, inputs):
        type(self).late = getattr(type(self), "late", 0) + 1
        self.history.append(self.late)
        return self.late + len(self.history)

    def state(self):
        return type(self).late, self.history


class Registered:
    """An object whose class counts."""

    calls = 0


@kind("counter of another class, through an object of it")
class OtherClassCounter(Odd):
    def prepare(self):
        Registered.calls = 0
        self.object = Registered()

    def odd(self, inputs):
        type(self.object).calls += 1
        return self.object.calls

    def state(self):
        return self.object.calls


@kind("counter and list of the Trainer's")
class TrainerCounter(Odd):
    def odd(self, inputs):
        self.trainer.calls = getattr(self.trainer, "calls", 0) + 1
        self.trainer.history = [*getattr(self.trainer, "history", []), self.trainer.calls]
        return len(self.trainer.history)

    def on_fit_start(self):
        self.trainer.kept = []

    def training_step(self, batch, batch_idx):
        self.trainer.kept.append(batch_idx)
        return super().training_step(batch, batch_idx)

    def state(self):
        return self.trainer.calls, self.trainer.history, self.trainer.kept


@kind("memory that a transfer hook fills for the step")
class TransferHook(Odd):
    def prepare(self):
        self.generator = torch.Generator().manual_seed(1)
        self.shared = {"lengths": []}
        self.count = torch.zeros(1)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.shared["lengths"] = [float(torch.randn((), generator=self.generator))]
        self.count.add_(1)
        self.mask = torch.ones(1)
        return batch

    def odd(self, inputs):
        self.shared["lengths"].append(self.shared["lengths"][-1] + 1)
        self.mask.mul_(2)
        return self.shared["lengths"][-1] + self.count + self.mask + torch.randn((), generator=self.generator)

    def state(self):
        return flat([self.shared, self.count, self.mask]), self.generator.get_state().tolist()
