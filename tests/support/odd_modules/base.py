"""What modules with odd state have in common."""

from collections import UserDict, deque

import lightning as L
import torch
from torch import nn

FEATURES = 3


class Odd(L.LightningModule):
    """Classifies points of the plane; what its kind adds to the inputs is up to the kind."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(FEATURES, 2)
        self.prepare()

    def prepare(self):
        """Make the odd state."""

    def odd(self, inputs):
        """Use the state and change it: a number, or a tensor that can be added to the inputs."""
        raise NotImplementedError

    def state(self):
        """What there is to compare, as plain numbers."""
        raise NotImplementedError

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.net(inputs + 0.1 * self.odd(inputs)), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)


KINDS = {}


def kind(name):
    """Enter a class into the table."""

    def enter(cls):
        assert name not in KINDS
        KINDS[name] = cls
        return cls

    return enter


class Holds(Odd):
    """Changes something that it holds, and lets the loss depend on what comes of it."""

    def make(self):
        raise NotImplementedError

    def prepare(self):
        self.held = self.make()

    def change(self, held):
        """Change it, and give a number."""
        raise NotImplementedError

    def odd(self, inputs):
        return self.change(self.held)

    def state(self):
        return flat(self.held)


def flat(value):
    """A value down to plain numbers, whatever it is made of."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (dict, UserDict)):
        return [(key, flat(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [flat(item) for item in value]
    if isinstance(value, set):
        return sorted(value)
    return flat(vars(value)) if hasattr(value, "__dict__") else value


def holder(name, make, change):
    """A kind that differs from others in no more than what it holds and how it changes that."""
    members = {"make": lambda self: make(), "change": lambda self, held: change(held)}
    kind(name)(type("Holds" + "".join(filter(str.isalnum, name.title())), (Holds,), members))


def append(held):
    held.append(len(held))
    return len(held)
