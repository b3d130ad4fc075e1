"""Modules that write to arrays and tensors."""

import array

import numpy as np
import torch

from tests.support.odd_modules.base import FEATURES, Odd, kind


class Numbers(Odd):
    """Adds up in place in something that holds numbers."""

    def make(self):
        return torch.zeros(FEATURES)

    def prepare(self):
        self.numbers = self.make()

    def odd(self, inputs):
        self.count()
        return float(self.numbers[0])

    def count(self):
        self.numbers[0] += 1

    def state(self):
        return [float(number) for number in self.numbers[:FEATURES]]


@kind("tensor")
class InPlace(Numbers):
    pass


@kind("tensor, through .data")
class ThroughData(Numbers):
    def count(self):
        self.numbers.data.add_(1)


@kind("large tensor, through .data")
class LargeThroughData(ThroughData):
    def make(self):
        return torch.zeros(2**15)


@kind("tensor that gets another storage")
class OtherStorage(Numbers):
    def count(self):
        self.numbers.data = self.numbers.data + 1


@kind("tensor that is replaced")
class Replaced(Numbers):
    def count(self):
        self.numbers = self.numbers + 1


@kind("tensor from numpy")
class FromNumpy(Numbers):
    def prepare(self):
        self.numbers = torch.zeros(FEATURES)

    def count(self):
        self.numbers.numpy()[0] += 1


@kind("sparse tensor")
class Sparse(Numbers):
    def make(self):
        return torch.eye(FEATURES).to_sparse()

    def odd(self, inputs):
        self.numbers.mul_(1.5)
        return float(self.numbers.to_dense()[0, 0])

    def state(self):
        return self.numbers.to_dense().tolist()


@kind("buffer, through .data")
class Buffer(Numbers):
    def prepare(self):
        self.register_buffer("numbers", torch.zeros(FEATURES), persistent=False)

    def count(self):
        self.numbers.data.add_(1)


@kind("buffer that is replaced")
class ReplacedBuffer(Numbers):
    def prepare(self):
        self.register_buffer("numbers", torch.zeros(FEATURES))

    def count(self):
        self.numbers = self.numbers + 1


@kind("tuple of tensors")
class TupleOfTensors(Numbers):
    def prepare(self):
        self.pair = (torch.zeros(FEATURES), 1)
        self.numbers = self.pair[0]
        del self.numbers

    def odd(self, inputs):
        self.pair[0].add_(1)
        return self.pair[0][0]

    def state(self):
        return self.pair[0].tolist()


@kind("numpy array")
class Array(Numbers):
    def make(self):
        return np.zeros(FEATURES)


@kind("large numpy array")
class LargeArray(Numbers):
    def make(self):
        return np.zeros(2**14)


@kind("numpy array with a view of it")
class ArrayView(Numbers):
    def prepare(self):
        self.whole = np.zeros((FEATURES, 4))
        self.numbers = self.whole[:, 1]


@kind("numpy array of objects")
class ObjectArray(Numbers):
    def make(self):
        return np.array([0, 0, 0], dtype=object)


@kind("structured numpy array")
class Structured(Numbers):
    def make(self):
        return np.zeros(FEATURES, dtype=[("calls", "i8"), ("sum", "f4")])

    def odd(self, inputs):
        self.numbers["calls"] += 1
        return float(self.numbers["calls"][0])

    def state(self):
        return self.numbers.tolist()


@kind("array.array")
class PlainArray(Numbers):
    def make(self):
        return array.array("d", [0, 0, 0])


@kind("bytearray that grows")
class Bytes(Odd):
    def prepare(self):
        self.bytes = bytearray(b"ab")

    def odd(self, inputs):
        self.bytes.append(1)
        return len(self.bytes)

    def state(self):
        return bytes(self.bytes)


def holds(name, make, change, state):
    """A kind that differs from others in no more than what it holds, how it changes that, and how that is read."""
    members = {
        "prepare": lambda self: setattr(self, "held", make()),
        "odd": lambda self, inputs: change(self.held),
        "state": lambda self: state(self.held),
    }
    kind(name)(type("Holds" + "".join(filter(str.isalnum, name.title())), (Odd,), members))


def first(held):
    """Count in the first item."""
    held[0] += 1
    return float(held[0])


def through_base(held):
    held.base[0] += 1
    return float(held[0])


def read_only():
    view = np.zeros(3)[:]
    view.flags.writeable = False
    return view


def resize(held):
    held.resize_(held.numel() + 1).fill_(1.0)
    return float(held.sum())


def transpose(held):
    held.data = held.data.t()
    held[0, 1] += 1.0
    return float(held[0].sum())


def want(held):
    held.requires_grad_(not held.requires_grad)
    return float(held.requires_grad)


def label(held):
    held.calls = getattr(held, "calls", 0) + 1
    return held.calls


holds("memoryview of a bytearray", lambda: memoryview(bytearray(4)), first, bytes)
holds("memoryview of an array", lambda: memoryview(np.zeros(3)), first, list)
holds("numpy array that is read only, through its base", read_only, through_base, np.ndarray.tolist)
holds("masked array", lambda: np.ma.zeros(3), first, np.ma.MaskedArray.tolist)
holds("slice of a tensor, at an odd place", lambda: torch.zeros(4)[1:3], first, lambda held: held._base.tolist())
holds("tensor that is resized", lambda: torch.zeros(2), resize, torch.Tensor.tolist)
holds("tensor that is transposed where it lies", lambda: torch.arange(4.0).view(2, 2), transpose, torch.Tensor.tolist)
holds("tensor that wants a gradient now and then", lambda: torch.zeros(2), want, lambda held: held.requires_grad)
holds("attribute of a tensor", lambda: torch.zeros(2), label, lambda held: held.calls)


@kind("attribute of a trained parameter")
class LabelledParameter(Odd):
    def odd(self, inputs):
        return label(self.net.weight)

    def state(self):
        return self.net.weight.calls
