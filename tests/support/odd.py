"""Modules with odd state: each keeps something, in a place of its own, that its step changes and its loss depends on."""

import array
import functools
import itertools
import random
from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import lightning as L
import numpy as np
import torch
import torchmetrics
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

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


# ---- random generators


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


# ---- arrays and tensors


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


# ---- containers


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


def count(held, key="calls"):
    held[key] += 1
    return held[key]


def rotate(held):
    held.append(held.pop(0))
    return held[0]


def exchange(held):
    """Take the oldest key out and put another one in: as many items, and the same values."""
    first = next(iter(held))
    del held[first]
    held[first + 2] = None
    return first


def move_to_end(held):
    held.move_to_end(next(iter(held)))
    return next(iter(held))


def slide(held):
    held.append(held[-1] + 1)
    return held[0]


def add(held):
    held.add(len(held))
    return len(held)


def swap(held):
    largest = max(held)
    held.remove(largest)
    held.add(largest + 1)
    return largest


def deep(held):
    held["a"][0]["b"].append(1)
    held["a"].append(len(held["a"]))
    return len(held["a"]) + len(held["a"][0]["b"])


def replace_last(held):
    held[-1] = held[-1] + 1
    return held[-1]


def own_cycle():
    tree = {"visits": 0}
    tree["child"] = [tree]
    return tree


class Sealed(OrderedDict):
    """A dict that forbids what dicts do, as the outputs of some model libraries are."""

    def update(self, *args, **kwargs):
        raise TypeError("cannot be updated")

    clear = update


class Noted(list):
    """A list with an attribute of its own."""

    notes = 0


def note(held):
    held.notes += 1
    held.append(held.notes)
    return held.notes + len(held)


class Cycle(Odd):
    def state(self):
        return self.held["visits"]


Pair = namedtuple("Pair", ["items", "name"])

holder("list that grows", list, append)
holder("list that is rotated in place", lambda: [1, 2, 3], rotate)
holder("long list with one other item", lambda: list(range(2000)), replace_last)
holder("list with an attribute", Noted, note)
holder("dict with a counter", lambda: {"calls": 0}, count)
holder("dict whose keys change", lambda: {0: None, 1: None}, exchange)
holder("OrderedDict whose order changes", lambda: OrderedDict([(1, "a"), (2, "b"), (3, "c")]), move_to_end)
holder("OrderedDict that forbids to be updated", lambda: Sealed(calls=0), count)
holder("defaultdict", lambda: defaultdict(int), count)
holder("Counter", Counter, count)
holder("UserDict", lambda: UserDict(calls=0), count)
holder("deque of bounded length", lambda: deque([1, 2, 3], maxlen=3), slide)
holder("set that grows", set, add)
holder("set of constant size", lambda: {1, 2}, swap)
holder("nested containers", lambda: {"a": [{"b": deque()}]}, deep)
holder("namedtuple with a list", lambda: Pair([], "name"), lambda held: append(held.items))


@kind("containers that hold each other")
class Ring(Odd):
    def prepare(self):
        self.held = own_cycle()

    def odd(self, inputs):
        return count(self.held["child"][0], "visits")

    def state(self):
        return self.held["visits"]


# ---- objects


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


# ---- iterators and functions


class Iterates(Odd):
    def make(self):
        raise NotImplementedError

    def prepare(self):
        self.iterator = self.make()

    def odd(self, inputs):
        return number(next(self.iterator))

    def state(self):
        return [number(item) for item in itertools.islice(self.iterator, 4)], type(self.iterator).__name__


def number(item):
    return sum(item) if isinstance(item, tuple) else item


def iterates(name, make):
    kind(name)(type("Iterates" + "".join(filter(str.isalnum, name.title())), (Iterates,), {"make": lambda self: make()}))


iterates("itertools.count", itertools.count)
iterates("itertools.cycle", lambda: itertools.cycle([1, 2, 3, 4]))
iterates("iterator of a list", lambda: iter(list(range(40))))
iterates("iterator of a range", lambda: iter(range(40)))
iterates("iterator of a dict", lambda: iter(dict.fromkeys(range(40))))
iterates("iterators in iterators", lambda: enumerate(zip_sum(iter(range(40)), itertools.count(3))))
iterates("half of itertools.tee", lambda: itertools.tee(iter(range(40)))[1])


def zip_sum(*iterators):
    return map(sum, zip(*iterators, strict=False))


@kind("iterator in a list that two attributes hold")
class SharedIterator(Iterates):
    def make(self):
        return itertools.count()

    def prepare(self):
        super().prepare()
        self.others = [self.iterator]

    def odd(self, inputs):
        return next(self.others[0]) + next(self.iterator)


def counter():
    """A function that counts its calls in a variable of its closure."""
    calls = 0

    def step():
        nonlocal calls
        calls += 1
        return calls

    return step


@kind("closure")
class Closure(Odd):
    def prepare(self):
        self.function = counter()

    def odd(self, inputs):
        return self.function()

    def state(self):
        return self.function.__closure__[0].cell_contents


def counted():
    """A function that counts its calls in an attribute of its own."""

    def step(history=[]):  # noqa: B006 the default is the point
        step.calls = getattr(step, "calls", 0) + 1
        history.append(step.calls)
        return step.calls + len(history)

    return step


@kind("attribute and default of a function")
class FunctionAttribute(Odd):
    def prepare(self):
        self.function = counted()

    def odd(self, inputs):
        return self.function()

    def state(self):
        return self.function.calls, self.function.__defaults__


@kind("functools.partial with a list")
class Partial(Odd):
    def prepare(self):
        self.function = functools.partial(append, [])

    def odd(self, inputs):
        return self.function()

    def state(self):
        return self.function.args


@kind("hook that keeps outputs in the closure's list")
class Hook(Odd):
    def prepare(self):
        outputs = []
        self.net.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach().mean()))
        self.outputs = lambda: outputs

    def odd(self, inputs):
        return len(self.outputs())

    def state(self):
        return flat(self.outputs())


@kind("hook that is registered again and again")
class Hooks(Odd):
    def odd(self, inputs):
        self.net.register_forward_hook(_add_one)
        return len(self.net._forward_hooks)

    def state(self):
        return len(self.net._forward_hooks)


def _add_one(module, inputs, output):
    return output + 0.01


# ---- modules


@kind("module hidden in a list, stepped in place")
class HiddenTeacher(Odd):
    def prepare(self):
        self.teachers = [nn.Linear(FEATURES, FEATURES)]
        self.teachers[0].requires_grad_(False)

    def step_teacher(self, teacher):
        teacher.weight.mul_(0.9).add_(0.1)

    def odd(self, inputs):
        with torch.no_grad():
            self.step_teacher(self.teachers[0])
            return self.teachers[0](inputs)

    def state(self):
        return flat(self.teachers[0].weight)


@kind("module hidden in a list, stepped through .data")
class HiddenTeacherData(HiddenTeacher):
    def step_teacher(self, teacher):
        teacher.weight.data.mul_(0.9).add_(0.1)


@kind("module hidden in a list, whose parameter is replaced")
class HiddenTeacherReplaced(HiddenTeacher):
    def step_teacher(self, teacher):
        teacher.weight = nn.Parameter(teacher.weight * 0.9, requires_grad=False)


@kind("teacher, in evaluation mode and stepped through .data")
class Teacher(HiddenTeacherData):
    def prepare(self):
        super().prepare()
        self.teacher = self.teachers[0].eval()


@kind("BatchNorm hidden in __dict__")
class HiddenNorm(Odd):
    def prepare(self):
        self.__dict__["norm"] = nn.BatchNorm1d(FEATURES)

    def odd(self, inputs):
        self.norm(inputs)
        return self.norm.running_mean.clone()

    def state(self):
        return flat(self.norm.running_mean), flat(self.norm.num_batches_tracked)


@kind("BatchNorm2d hidden in a tuple")
class HiddenNorm2d(HiddenNorm):
    def prepare(self):
        self.layers = (nn.BatchNorm2d(FEATURES),)

    @property
    def norm(self):
        return self.layers[0]

    def odd(self, inputs):
        self.norm(inputs.view(-1, FEATURES, 1, 1))
        return self.norm.running_mean.clone()


@kind("running statistics of the module's own")
class OwnStatistics(Odd):
    def prepare(self):
        self.mean, self.variance = torch.zeros(FEATURES), torch.ones(FEATURES)

    def odd(self, inputs):
        nn.functional.batch_norm(inputs.view(-1, FEATURES, 1, 1), self.mean, self.variance, training=True)
        return self.mean.clone()

    def state(self):
        return flat([self.mean, self.variance])


@kind("AveragedModel")
class Averaged(Odd):
    hidden = False

    def prepare(self):
        average = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
        if self.hidden:
            self.averages = [average]
        else:
            self.average = average

    def held(self):
        return self.averages[0] if self.hidden else self.average

    def odd(self, inputs):
        with torch.no_grad():
            self.held().update_parameters(self.net)
            return self.held()(inputs).mean() + self.held().n_averaged

    def state(self):
        return flat(dict(self.held().state_dict()))


@kind("AveragedModel hidden in a list")
class HiddenAverage(Averaged):
    hidden = True


@kind("trained parameter that is replaced")
class ReplacedParameter(Odd):
    def odd(self, inputs):
        self.net.weight = nn.Parameter(self.net.weight.detach() * 0.99)
        return 0.0

    def state(self):
        return flat(self.net.weight)


@kind("trained parameter that gets another storage")
class MovedParameter(Odd):
    def odd(self, inputs):
        self.net.weight.data = self.net.weight.data * 0.99
        return 0.0

    def state(self):
        return flat(self.net.weight)


class Rescaled(Odd):
    """Scales its trained weights in the step: the losses of a group of batches are all of the same point nevertheless."""

    def state(self):
        return flat(self.net.weight)


@kind("trained weights that are scaled")
class RescaledInPlace(Rescaled):
    def odd(self, inputs):
        with torch.no_grad():
            self.net.weight.mul_(0.9)
        return 0.0


@kind("trained weights that are clipped through .data")
class Clipped(Rescaled):
    def odd(self, inputs):
        self.net.weight.data.clamp_(-0.2, 0.2)
        return 0.0


@kind("submodule that is replaced")
class ReplacedModule(Odd):
    def prepare(self):
        self.scale = nn.Linear(1, 1).requires_grad_(False)

    def odd(self, inputs):
        other = nn.Linear(1, 1).requires_grad_(False)
        other.weight.data.copy_(self.scale.weight + 1)
        self.scale = other
        return float(other.weight)

    def state(self):
        return flat(self.scale.weight)


@kind("submodule and buffer that are made late")
class LateModule(Odd):
    def odd(self, inputs):
        if not hasattr(self, "norm"):
            self.norm = nn.BatchNorm1d(FEATURES)
            self.register_buffer("late", torch.zeros(1))
        self.norm(inputs)
        self.late += 1
        return self.norm.running_mean.clone() + self.late

    def state(self):
        return flat([self.norm.running_mean, self.late])


@kind("flags of parameters and modules")
class Flags(Odd):
    def prepare(self):
        self.dropout = nn.Dropout(0.5)
        self.extra = nn.Parameter(torch.zeros(1))

    def odd(self, inputs):
        value = 1.0 * self.extra.requires_grad + self.dropout(inputs).detach()
        self.extra.requires_grad_(not self.extra.requires_grad)
        self.dropout.train(not self.dropout.training)
        return value

    def state(self):
        return self.extra.requires_grad, self.dropout.training


@kind("gradient that is set by hand")
class Gradient(Odd):
    def prepare(self):
        self.extra = nn.Parameter(torch.zeros(1))

    def odd(self, inputs):
        value = 0.0 if self.extra.grad is None else float(self.extra.grad)
        self.extra.grad = torch.full((1,), value + 1)
        return value

    def state(self):
        return flat(self.extra.grad)


@kind("spectral norm, which iterates in buffers")
class Spectral(Odd):
    def prepare(self):
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, FEATURES)).requires_grad_(False)

    def odd(self, inputs):
        return self.layer(inputs)

    def state(self):
        return flat(dict(self.layer.state_dict()))


@kind("torchmetrics, hidden in a dict")
class HiddenMetric(Odd):
    def prepare(self):
        self.metrics = {"mean": torchmetrics.MeanMetric(), "all": torchmetrics.CatMetric()}

    def odd(self, inputs):
        for metric in self.metrics.values():
            metric.update(inputs.mean())
        return float(self.metrics["mean"].weight) + len(self.metrics["all"].value)

    def state(self):
        return flat([metric.compute() for metric in self.metrics.values()]), self.metrics["mean"]._update_count


# ---- optimizers and schedulers


@kind("optimizer of the module's own, with momentum")
class OwnOptimizer(Odd):
    def prepare(self):
        self.centre = nn.Parameter(torch.zeros(FEATURES))
        self.optimizer = torch.optim.Adam([self.centre], lr=0.1)

    def odd(self, inputs):
        self.centre.grad = self.centre.detach() - inputs.mean(0).detach() + 1
        self.optimizer.step()
        return self.centre.detach().clone()

    def state(self):
        return flat(self.centre), flat(self.optimizer.state_dict())


class Schedules(Odd):
    def odd(self, inputs):
        self.move()
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def state(self):
        return self.trainer.optimizers[0].param_groups[0]["lr"]


@kind("scheduler of the module's own on the Trainer's optimizer")
class OwnScheduler(Schedules):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return optimizer

    def move(self):
        self.scheduler.step()

    def on_before_optimizer_step(self, optimizer):
        pass

    def state(self):
        return super().state(), self.scheduler.state_dict()

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 0:
            self.trainer.optimizers[0]._opt_called = True  # else the scheduler warns of its order
        return super().training_step(batch, batch_idx)


@kind("scheduler of the Trainer's")
class TrainersScheduler(Schedules):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for gamma in (0.9, 0.8)]
        return [optimizer], [torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[4])]

    def move(self):
        self.trainer.optimizers[0]._opt_called = True
        self.lr_schedulers().step()

    def state(self):
        scheduler = self.lr_schedulers()
        return super().state(), scheduler.last_epoch, scheduler._schedulers[0].last_epoch, scheduler._schedulers[1].last_epoch


@kind("learning rate that is changed in the step")
class OwnRate(Schedules):
    def move(self):
        self.trainer.optimizers[0].param_groups[0]["lr"] *= 0.99


@kind("state of the Trainer's optimizer")
class OptimizerState(Odd):
    def odd(self, inputs):
        state = self.trainer.optimizers[0].state[self.net.weight]
        if "momentum_buffer" in state:
            state["momentum_buffer"].mul_(0.5)
        state["calls"] = state.get("calls", 0) + 1
        return float(state["calls"])

    def state(self):
        return flat(dict(self.trainer.optimizers[0].state[self.net.weight]))


@kind("GradScaler")
class Scaler(Odd):
    def prepare(self):
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)

    def odd(self, inputs):
        scale = self.scaler.get_scale()
        self.scaler.scale(torch.zeros(()))
        self.scaler.update(scale * 1.5)
        return scale

    def state(self):
        return self.scaler.get_scale()


# ---- classes and the Trainer


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
