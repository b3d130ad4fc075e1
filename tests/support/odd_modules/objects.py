"""Modules that hold objects which change."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from tests.support.odd_modules.base import Holds, Odd, holder, kind


@dataclass
class Record:
    calls: int = 0
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(2))


@dataclass(slots=True)
class SlottedRecord:
    calls: int = 0
    late: list = None


class Frozen:
    """An object that forbids to set its attributes, and does so behind its own back."""

    def __init__(self):
        vars(self)["calls"] = 0

    def __setattr__(self, name, value):
        raise AttributeError(name)


def step_record(held):
    held.calls += 1
    held.total.add_(1)
    return held.calls + float(held.total[0])


def step_slots(held):
    held.calls += 1
    held.late = [*(held.late or []), held.calls]
    return len(held.late) + held.calls


def step_object(held):
    held.calls = getattr(held, "calls", 0) + 1
    return held.calls


def step_frozen(held):
    vars(held)["calls"] += 1
    return held.calls


holder("dataclass", Record, step_record)
holder("namespace whose attribute is new", SimpleNamespace, step_object)
holder("objects in objects", lambda: SimpleNamespace(inner=[SimpleNamespace(calls=0)]), lambda held: step_object(held.inner[0]))
holder("object that forbids to set attributes", Frozen, step_frozen)


@kind("dataclass with slots")
class Slotted(Holds):
    def make(self):
        return SlottedRecord()

    def change(self, held):
        return step_slots(held)

    def state(self):
        return self.held.calls, self.held.late


@kind("object in __dict__, behind the module's back")
class BehindItsBack(Holds):
    def prepare(self):
        object.__setattr__(self, "held", SimpleNamespace(calls=0))

    def change(self, held):
        return step_object(held)


@kind("attribute that is made late")
class Lazy(Odd):
    def odd(self, inputs):
        if not hasattr(self, "late"):
            self.late = 0
        self.late += 1
        return self.late

    def state(self):
        return self.late


@kind("attribute that is deleted")
class Deleted(Odd):
    def prepare(self):
        self.once = 5

    def odd(self, inputs):
        return self.__dict__.pop("once", 0)

    def state(self):
        return hasattr(self, "once")
