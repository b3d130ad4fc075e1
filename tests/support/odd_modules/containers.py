"""Modules whose containers change."""

from collections import Counter, OrderedDict, UserDict, defaultdict, deque, namedtuple

from tests.support.odd_modules.base import Odd, append, holder, kind


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
