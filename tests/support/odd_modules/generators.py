"""Modules that hold random generators."""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from tests.support.odd_modules.base import Odd, kind


class Draws(Odd):
    """Draws once from a generator, which tells its state by what it would draw next."""

    generator = None

    def held(self):
        return self.generator

    def odd(self, inputs):
        return draw(self.held())

    def state(self):
        return [draw(self.held()) for _ in range(3)]


def draw(generator):
    if isinstance(generator, torch.Generator):
        return float(torch.randn((), generator=generator))
    if isinstance(generator, np.random.BitGenerator):
        return generator.random_raw() / 2**64
    return float(generator.normal() if hasattr(generator, "normal") else generator.gauss(0, 1))


@kind("torch.Generator, for noise on the inputs")
class Denoising(Draws):
    def prepare(self):
        self.generator = torch.Generator().manual_seed(1)

    def odd(self, inputs):
        return torch.randn(inputs.shape, generator=self.generator)


@kind("numpy Generator, for mixup")
class Mixup(Draws):
    def prepare(self):
        self.generator = np.random.default_rng(1)

    def odd(self, inputs):
        weight = float(self.generator.beta(0.4, 0.4))
        return (1 - weight) * (inputs[self.generator.permutation(len(inputs))] - inputs)


@kind("numpy RandomState")
class Legacy(Draws):
    def prepare(self):
        self.generator = np.random.RandomState(1)


@kind("numpy BitGenerator")
class Bits(Draws):
    def prepare(self):
        self.generator = np.random.PCG64(1)


@kind("random.Random")
class Pythonic(Draws):
    def prepare(self):
        self.generator = random.Random(1)


@kind("generators in a dict in a list")
class NestedGenerators(Draws):
    def prepare(self):
        self.held_in = [{"generator": np.random.default_rng(1)}]

    def held(self):
        return self.held_in[0]["generator"]


@kind("generator in a tuple")
class TupledGenerator(Draws):
    def prepare(self):
        self.held_in = (torch.Generator().manual_seed(1), "name")

    def held(self):
        return self.held_in[0]


class Augmentation:
    """A plain object that draws."""

    def __init__(self):
        self.rng = np.random.default_rng(1)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return float(self.rng.normal()) + self.calls


@kind("plain object with a generator and a counter")
class Augmenting(Odd):
    def prepare(self):
        self.augment = Augmentation()

    def odd(self, inputs):
        return self.augment()

    def state(self):
        return self.augment.calls, self.augment.rng.bit_generator.state


@kind("bound method of an object that nothing else holds")
class Bound(Odd):
    def prepare(self):
        self.augment = Augmentation().__call__

    def odd(self, inputs):
        return self.augment()

    def state(self):
        return self.augment.__self__.calls


@kind("global generators, an odd number of normal draws")
class Global(Odd):
    def odd(self, inputs):
        return float(np.random.randn()) + random.gauss(0, 1) + float(torch.randn(()))

    def state(self):
        return float(np.random.randn()), random.gauss(0, 1), float(torch.randn(()))


@kind("generator of the class")
class ClassGenerator(Draws):
    shared = None

    def prepare(self):
        type(self).shared = torch.Generator().manual_seed(1)

    def held(self):
        return self.shared


@kind("random.Random in a dict")
class DictGenerator(Draws):
    def prepare(self):
        self.held_in = {"generator": random.Random(1)}

    def held(self):
        return self.held_in["generator"]


@dataclass
class Noise:
    """Keeps generators in a list."""

    generators: list = field(default_factory=lambda: [torch.Generator().manual_seed(1)])


@kind("torch.Generator in a list in a dataclass")
class DataclassGenerator(Draws):
    def prepare(self):
        self.held_in = Noise()

    def held(self):
        return self.held_in.generators[0]
