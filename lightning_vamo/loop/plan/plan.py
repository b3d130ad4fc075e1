"""The epoch's plan of batches: loaded for the sweep before the epoch trains on it, and kept for later epochs."""

import copy
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import BatchSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.recorder import Pass, RecordingBatchSampler


class _Reader:
    """Batch sampler of the sweep's loader: each pass reads a pass of the plan."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._length = len(passes[0].batches)
        self._passes = iter(passes)

    def __iter__(self) -> Iterator[Any]:
        yield from next(self._passes)

    def __len__(self) -> int:
        return self._length


class Plan:
    """The batches of one epoch, in the order in which the training epoch takes them, as each loader's sampler gave them.

    Args:
        loader: The training loader, whose loaders record.
        passes: The passes over each of them that make up the epoch: several where one is shorter than the epoch and cycles.
        length: ``K``, the number of training batches of the epoch.

    Attributes:
        exact: Whether the loaders are to give as many batches as ``length`` says.
        length: As given.
        keeps_order: Whether later epochs are to take the batches in the same order, which may have a meaning.
    """

    exact = True

    def __init__(self, loader: CombinedLoader, passes: Sequence[Sequence[Pass]], length: int) -> None:
        self.length = length
        self._loader = loader
        self._recorders = recorders_of(loader)
        self._passes = passes
        self.keeps_order = len(self._recorders) > 1 or not _shuffles(self._recorders[0])

    @contextmanager
    def loaded(self) -> Iterator[Iterator[Any]]:
        """Load the plan's batches through a second loader like the training loader; its workers end with the context."""
        loader = self._loader
        pairs = zip(loader.flattened, self._passes, strict=True)
        clones = [fresh_loader(part, batch_sampler=_Reader(passes)) for part, passes in pairs]
        # Those of one loader are in the plan's length, which may be another than the epoch's: see `without_replacement`.
        with loaded_beside(loader, clones, self.length, None if len(clones) == 1 else loader.limits) as batches:
            yield batches

    def first(self, length: int) -> "Plan":
        """The plan of the first ``length`` batches: at most as many as this plan has."""
        return Plan(self._loader, self._passes, length)

    def sizes(self) -> list[int]:
        """Number of samples of each batch, shape ``(K,)``."""
        total = [0] * self.length
        for passes in self._passes:
            drawn = (batch for one_pass in passes for batch in one_pass.batches)
            for position, batch in zip(range(self.length), drawn, strict=False):
                total[position] += len(batch) if hasattr(batch, "__len__") else 1
        return total

    def again(self, generator: torch.Generator, group: int = 1) -> list[int]:
        """Let the next epoch train on the same batches.

        The order is reshuffled where it is known to be random: one loader, with one of torch's random samplers.

        Args:
            generator: Source of the new order.
            group: How many consecutive batches are to stay together; fewer than that, which may be left over, stay last.

        Returns:
            The row of the plan that each step of the next epoch takes, shape ``(K,)``.
        """
        order = None
        if not self.keeps_order:
            groups = torch.randperm(self.length // group, generator=generator, device="cpu").tolist()
            order = [first * group + offset for first in groups for offset in range(group)]
            order += range(len(order), self.length)
        for recorder, passes in zip(self._recorders, self.batches(), strict=True):
            recorder.replay(remaining(passes, 0, order))
        return list(range(self.length)) if order is None else order

    def without_replacement(self, generator: torch.Generator) -> "Plan":
        """A plan that takes every sample once, if this plan draws samples with replacement and so misses some.

        Args:
            generator: Source of the order.

        Returns:
            The plan, for a sweep of the data; this one, if no sample can be missing, or if the sampler is not torch's own.
        """
        batch_sampler: Any = self._recorders[0].wrapped
        sampler: Any = getattr(batch_sampler, "sampler", None)
        known = len(self._recorders) == 1 and type(batch_sampler) is BatchSampler and type(sampler) is RandomSampler
        if not known or not sampler.replacement:
            return self
        size, samples = batch_sampler.batch_size, len(sampler.data_source)
        order = torch.randperm(samples, generator=generator, device="cpu").tolist()
        batches = [order[start : start + size] for start in range(0, samples, size)]
        if batch_sampler.drop_last and len(batches) > 1 and len(batches[-1]) < size:
            batches.pop()
        if self.length < len(batch_sampler):  # the Trainer limits the epoch, and so what a sweep may take
            batches = batches[: self.length]
        return Plan(self._loader, [[Pass.of(batches)]], len(batches))

    def batches(self) -> list[list[list[Any]]]:
        """The batches of each pass over each loader."""
        return [[one_pass.batches for one_pass in passes] for passes in self._passes]

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether the plan belongs to this loader: a reloaded loader may hold other data."""
        return loader is not None and recorders_of(loader) == self._recorders


@contextmanager
def loaded_beside(
    loader: CombinedLoader, parts: Sequence[Any], length: int, limits: list[int | float] | None
) -> Iterator[Iterator[Any]]:
    """Load batches through a second loader like the training loader; its workers end with the context.

    Args:
        loader: The training loader.
        parts: What the second one combines in place of its parts.
        length: How many batches at most.
        limits: How many of each part.

    Yields:
        The batches.
    """
    second = CombinedLoader(loader.iterables, compat.loader_mode(loader))
    second.flattened = list(parts)
    second.limits = limits
    try:
        # Not `iter(second)` first: a CombinedLoader is its own iterator and would begin a second pass.
        yield (batch for batch, _, _ in itertools.islice(second, length))
    finally:
        second.reset()


def recorders_of(loader: CombinedLoader) -> list[RecordingBatchSampler]:
    """The recorders of the training loader's parts, in their order."""
    return [_recorder(part) for part in loader.flattened]


def remaining(passes: Sequence[list[Any]], position: int, order: Sequence[int] | None) -> list[list[Any]]:
    """The remaining batches of an epoch over a loader.

    Args:
        passes: The batches of each pass that the epoch makes.
        position: How many batches have been taken.
        order: The row of the plan that each step of the epoch takes, shape ``(K,)``; None if they are taken as they were drawn.

    Returns:
        The batches of each pass to come; the first, from which some may have been taken, is empty if it has just ended.
    """
    if order is not None:
        batches = list(itertools.chain.from_iterable(passes))
        return [[batches[row] for row in order[position:]]]
    for index, batches in enumerate(passes):
        if position <= len(batches):
            return [batches[position:], *passes[index + 1 :]]
        position -= len(batches)
    return [[]]


def plan_of(trainer: Trainer) -> Plan:
    """The plan of the training epoch that has begun to draw its batches.

    All of them are drawn now, as plain training would draw them in the epoch's course: what a sampler takes from the global
    generators stays taken.

    Args:
        trainer: The trainer, inside a training epoch.

    Returns:
        The plan.

    Raises:
        UnsupportedError: If the epoch has no fixed number of batches.
    """
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the first batch"
    if trainer.num_training_batches == float("inf"):
        raise UnsupportedError(
            "The training DataLoader has no length, so VAMO cannot sweep the epoch: give its batch sampler a `__len__`, set"
            " Trainer(limit_train_batches=...) to a whole number, set control='recompute', or train with"
            " probes=0."
        )
    length = int(trainer.num_training_batches)
    cycles = compat.loader_mode(loader) == "max_size_cycle"
    return Plan(loader, [_draw(part, length, cycles) for part in loader.flattened], length)


def has_plan(trainer: Trainer) -> bool:
    """Whether :func:`plan_of` can give a plan; draws no batches."""
    loader = compat.train_loader(trainer)
    if loader is None or trainer.num_training_batches == float("inf"):
        return False
    recorders = [getattr(part, "batch_sampler", None) for part in loader.flattened]
    return all(isinstance(recorder, RecordingBatchSampler) and recorder.current is not None for recorder in recorders)


def _recorder(loader: Any) -> RecordingBatchSampler:
    recorder = getattr(loader, "batch_sampler", None)
    if not isinstance(recorder, RecordingBatchSampler):
        raise UnsupportedError("The training DataLoader has ceased to record its batches.")
    return recorder


def fresh_loader(loader: Any, **others: Any) -> Any:
    """A shallow copy of the user's loader, subclass and all, that shares no iteration state.

    Args:
        loader: The loader.
        others: Attributes that are to be others.

    Returns:
        The copy. It draws its workers' seeds from a generator of its own, as the user's is not to move; they are others for
        each state of the global generator, which does not move either.
    """
    clone = copy.copy(loader)
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
    # Set behind DataLoader's back, which forbids it, as in `record`. Persistent workers would outlive the sweep.
    for name, value in {"_iterator": None, "generator": generator, "persistent_workers": False, **others}.items():
        object.__setattr__(clone, name, value)
    return clone


def _draw(loader: Any, length: int, cycles: bool) -> list[Pass]:
    """Draw the batches of an epoch of ``length``, from as many passes as a loader that cycles will make."""
    drawn = []
    for one_pass in _recorder(loader).passes():
        drawn.append(one_pass)
        if one_pass.draw(length):
            # As far ahead as workers read: so a checkpoint knows in which state they will leave the sampler's generator.
            one_pass.draw(length + loader.num_workers * (loader.prefetch_factor or 0))
            break
        if not cycles or not one_pass.batches:
            break
        length -= len(one_pass.batches)
    return drawn


def _shuffles(recorder: RecordingBatchSampler) -> bool:
    sampler = getattr(recorder.wrapped, "sampler", None)
    return isinstance(sampler, (RandomSampler, WeightedRandomSampler, SubsetRandomSampler)) or bool(
        getattr(sampler, "shuffle", False)
    )
