"""The plan of an epoch: the list of its batches, which a sweep loads before the epoch trains on them."""

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
from lightning_vamo.loop.plan.loadable import INSTEAD
from lightning_vamo.loop.plan.recorder import Pass, RecordingBatchSampler


class _Reader:
    """The batch sampler of the sweep's loader: each of its passes reads a pass of the plan."""

    def __init__(self, passes: Sequence[Pass]) -> None:
        self._length = len(passes[0].batches)
        self._passes = iter(passes)

    def __iter__(self) -> Iterator[Any]:
        yield from next(self._passes)

    def __len__(self) -> int:
        return self._length


class Plan:
    """The batches of one epoch, in the order of the training epoch, as each loader's sampler gave them.

    Args:
        loader: The training loader, which combines loaders that record their batches.
        passes: For each of these loaders, its passes in the epoch; several if the loader is shorter than the epoch and cycles.
        length: ``K``, the number of training batches of the epoch.

    Attributes:
        exact: Whether the loaders must give as many batches as ``length`` says.
        length: ``K``, the number of training batches of the epoch.
        keeps_order: Whether later epochs have to take the batches in the same order, which may have a meaning.
    """

    exact = True

    def __init__(self, loader: CombinedLoader, passes: Sequence[Sequence[Pass]], length: int) -> None:
        self.length = length
        self._loader = loader
        self._recorders = recorders_of(loader)
        self._passes = passes
        self.keeps_order = len(self._recorders) > 1 or not shuffles(self._recorders[0])

    @contextmanager
    def loaded(self) -> Iterator[Iterator[Any]]:
        """Load the plan's batches through a second loader like the training loader; its workers end with the context."""
        loader = self._loader
        pairs = zip(loader.flattened, self._passes, strict=True)
        clones = [fresh_loader(part, batch_sampler=_Reader(passes)) for part, passes in pairs]
        # A single loader needs no limits: the plan's length holds them, and may differ from the epoch's length, see
        # `without_replacement`.
        with loaded_beside(loader, clones, self.length, None if len(clones) == 1 else loader.limits) as batches:
            yield batches

    def first(self, length: int) -> "Plan":
        """The plan of the first ``length`` batches, at most as many as this plan has."""
        return Plan(self._loader, self._passes, length)

    def in_order(self, order: Sequence[int]) -> "Plan":
        """The plan of the same batches in another order.

        Args:
            order: The row of this plan that each step takes, shape ``(K,)``.

        Returns:
            The plan; this plan, if later epochs have to keep its order.
        """
        if self.keeps_order or list(order) == list(range(self.length)):
            return self
        passes = [[Pass.of(part) for part in remaining(batches, 0, order)] for batches in self.batches()]
        return Plan(self._loader, passes, self.length)

    def sizes(self) -> list[int]:
        """Number of samples of each batch, shape ``(K,)``."""
        total = [0] * self.length
        for passes in self._passes:
            drawn = (batch for one_pass in passes for batch in one_pass.batches)
            for position, batch in zip(range(self.length), drawn, strict=False):
                total[position] += len(batch) if hasattr(batch, "__len__") else 1
        return total

    def again(self, generator: torch.Generator, group: int = 1) -> list[int]:
        """Make the next epoch train on the same batches.

        The order is reshuffled if it is known to be random: with a single loader that has one of torch's random samplers.

        Args:
            generator: Source of the new order.
            group: How many consecutive batches have to stay together; an incomplete last group stays last.

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
        """A plan that takes every sample once, if this plan draws samples with replacement and so misses some samples.

        Args:
            generator: Source of the order.

        Returns:
            The plan, for a sweep of the data; this plan if no sample can be missing, or if the sampler is not torch's own.
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
        if self.length < len(batch_sampler):  # the Trainer limits the epoch, and so the sweep too
            batches = batches[: self.length]
        return Plan(self._loader, [[Pass.of(batches)]], len(batches))

    def batches(self) -> list[list[list[Any]]]:
        """The batches of each pass over each loader."""
        return [[one_pass.batches for one_pass in passes] for passes in self._passes]

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether the plan belongs to this loader; a reloaded loader may hold other data."""
        return loader is not None and recorders_of(loader) == self._recorders


@contextmanager
def loaded_beside(
    loader: CombinedLoader, parts: Sequence[Any], length: int, limits: list[int | float] | None
) -> Iterator[Iterator[Any]]:
    """Load batches through a second loader like the training loader; its workers end with the context.

    Args:
        loader: The training loader.
        parts: The loaders that the second loader combines.
        length: The largest number of batches.
        limits: The largest number of batches of each part; None for no limit.

    Yields:
        The batches.
    """
    second = CombinedLoader(loader.iterables, compat.loader_mode(loader))
    second.flattened = list(parts)
    second.limits = limits
    try:
        # Without `iter(second)`: a CombinedLoader is its own iterator and would begin a second pass.
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
        position: Number of batches that have been taken.
        order: The row of the plan that each step of the epoch takes, shape ``(K,)``; None for the order of the draws.

    Returns:
        The remaining batches of each pass, beginning with the present pass, which is empty if it has just ended.
    """
    if order is not None:
        batches = list(itertools.chain.from_iterable(passes))
        return [[batches[row] for row in order[position:]]]
    for index, batches in enumerate(passes):
        if position <= len(batches):
            return [batches[position:], *passes[index + 1 :]]
        position -= len(batches)
    return [[]]


def plan_of(trainer: Trainer, instead: str = INSTEAD) -> Plan:
    """The plan of the training epoch that has begun to draw its batches.

    All batches are drawn now, as plain training would draw them in the course of the epoch; the random numbers that a sampler
    takes from the global generators stay taken.

    Args:
        trainer: The trainer, inside a training epoch.
        instead: Another remedy, for the message of a refusal.

    Returns:
        The plan.

    Raises:
        UnsupportedError: If the epoch has no fixed number of batches.
    """
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the first batch"
    if trainer.num_training_batches == float("inf"):
        raise UnsupportedError(
            "The training DataLoader has no length, so the epoch cannot be swept: give its batch sampler a `__len__`, set"
            f" Trainer(limit_train_batches=...) to a whole number, {instead}."
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
        raise UnsupportedError(
            "The training DataLoader no longer records its batches, since its batch sampler was replaced: do not change the"
            " loader during training."
        )
    return recorder


def fresh_loader(loader: Any, **others: Any) -> Any:
    """A shallow copy of the user's loader, of the same class, that shares no state of iteration.

    Args:
        loader: The loader.
        others: Attributes that the copy gets in place of the loader's attributes.

    Returns:
        The copy. It draws its workers' seeds from its own generator, so the user's generator does not move. The seeds depend on
        the state of the global generator, which does not move either.
    """
    clone = copy.copy(loader)
    with torch.random.fork_rng(devices=[]):
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
    # Set with `object.__setattr__`, since DataLoader forbids a plain assignment. Persistent workers would outlive the sweep.
    for name, value in {"_iterator": None, "generator": generator, "persistent_workers": False, **others}.items():
        object.__setattr__(clone, name, value)
    return clone


def _draw(loader: Any, length: int, cycles: bool) -> list[Pass]:
    """Draw the batches of an epoch of ``length``, from as many passes as a loader that cycles will make."""
    drawn = []
    for one_pass in _recorder(loader).passes():
        drawn.append(one_pass)
        if one_pass.draw(length):
            # Also batches that workers will read ahead: so a checkpoint has the state of the sampler's generator after them.
            one_pass.draw(length + loader.num_workers * (loader.prefetch_factor or 0))
            break
        if not cycles or not one_pass.batches:
            break
        length -= len(one_pass.batches)
    return drawn


def shuffles(recorder: RecordingBatchSampler) -> bool:
    """Whether a loader is known to draw its batches in a random order."""
    sampler = getattr(recorder.wrapped, "sampler", None)
    return isinstance(sampler, (RandomSampler, WeightedRandomSampler, SubsetRandomSampler)) or bool(
        getattr(sampler, "shuffle", False)
    )
