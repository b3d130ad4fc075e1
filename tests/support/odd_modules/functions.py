"""Modules whose iterators and functions move on."""

import functools
import itertools

from tests.support.odd_modules.base import Odd, append, flat, kind


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


@kind("attribute and default of a method")
class MethodsOwn(Odd):
    def prepare(self):
        MethodsOwn.count.calls = 0
        MethodsOwn.count.__defaults__[0].clear()

    def count(self, history=[]):  # noqa: B006 the default is the point
        MethodsOwn.count.calls += 1
        history.append(1)
        return MethodsOwn.count.calls + len(history)

    def odd(self, inputs):
        return self.count()

    def state(self):
        return MethodsOwn.count.calls, len(MethodsOwn.count.__defaults__[0])
