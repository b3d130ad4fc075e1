"""The epoch's plan of batches: loaded for the sweep before the epoch trains on it, and kept for later epochs."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.recording import Pass, RecordingBatchSampler


class _Reader:
    """Batch sampler of the sweep's loader: each of its passes reads one of the recorder's."""

    def __init__(self, recorder: RecordingBatchSampler) -> None:
        self._recorder = recorder
        self._passes = recorder.passes()
        self.read: list[Pass] = []

    def __iter__(self) -> Iterator[Any]:
        self.read.append(next(self._passes))
        yield from self.read[-1]

    def __len__(self) -> int:
        return len(self._recorder)


class Plan:
    """The batches of one epoch, in the order in which the training epoch takes them.

    All of them are drawn when the plan is made, as plain training would draw them in the epoch's course: what a sampler takes
    from the global generators stays taken.

    Args:
        loader: The training loader, whose loaders record, with the epoch's first batch drawn.
        length: ``K``, the number of training batches of the epoch.
    """

    def __init__(self, loader: CombinedLoader, length: int) -> None:
        self.length = length
        self.fingerprints: list[int | None] = []
        """A fingerprint of each batch as the sweep saw it."""
        self._recorders = [_recorder(part) for part in loader.flattened]
        cycles = compat.loader_mode(loader) == "max_size_cycle"
        for recorder in self._recorders:
            _draw(recorder, length, cycles)
        self._readers = [_Reader(recorder) for recorder in self._recorders]
        self._keeps_order = len(self._recorders) > 1 or not _shuffles(self._recorders[0])
        clones = [_clone(part, reader) for part, reader in zip(loader.flattened, self._readers, strict=True)]
        self._loader = CombinedLoader(loader.iterables, compat.loader_mode(loader))
        self._loader.flattened = clones
        self._loader.limits = loader.limits

    @contextmanager
    def loaded(self) -> Iterator[Iterator[Any]]:
        """Load the plan's batches through a second loader like the training one; its workers end with the context."""
        try:
            # Not `iter(self._loader)` first: a CombinedLoader is its own iterator and would begin a second pass.
            yield (batch for batch, _, _ in itertools.islice(self._loader, self.length))
        finally:
            self._loader.reset()

    def sizes(self) -> list[int]:
        """Number of samples of each batch, shape ``(K,)``; known once the batches have been loaded."""
        total = [0] * self.length
        for reader in self._readers:
            drawn = (batch for one_pass in reader.read for batch in one_pass.batches)
            for position, batch in zip(range(self.length), drawn, strict=False):
                total[position] += len(batch) if hasattr(batch, "__len__") else 1
        return total

    def again(self, generator: torch.Generator) -> list[int]:
        """Let the next epoch train on the same batches.

        The order is reshuffled where it is known to be random: one loader, with one of torch's random samplers.

        Args:
            generator: Source of the new order.

        Returns:
            The row of the plan that each step of the next epoch takes, shape ``(K,)``.
        """
        order = list(range(self.length))
        if self._keeps_order:
            for recorder, reader in zip(self._recorders, self._readers, strict=True):
                recorder.replay([one_pass.batches for one_pass in reader.read])
            return order
        order = torch.randperm(self.length, generator=generator, device="cpu").tolist()
        batches = self._readers[0].read[0].batches
        self._recorders[0].replay([[batches[row] for row in order]])
        return order

    def belongs_to(self, loader: CombinedLoader | None) -> bool:
        """Whether the plan is one of this loader's: a reloaded loader may hold other data."""
        return loader is not None and [_recorder(part) for part in loader.flattened] == self._recorders


def plan_of(trainer: Trainer) -> Plan:
    """The plan of the training epoch that has just drawn its first batch.

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
            " Trainer(limit_train_batches=...) to a whole number, or train with probes=0."
        )
    return Plan(loader, int(trainer.num_training_batches))


def _recorder(loader: Any) -> RecordingBatchSampler:
    recorder = loader.batch_sampler
    assert isinstance(recorder, RecordingBatchSampler)
    return recorder


def _clone(loader: Any, reader: _Reader) -> Any:
    """A shallow copy of the user's loader, subclass and all, that reads the recorded plan and shares no iteration state."""
    clone = copy.copy(loader)
    # Set behind DataLoader's back, which forbids it, as in `record`. The copy draws its workers' seeds from a generator of its
    # own: the user's is not to move. Persistent workers would outlive the sweep.
    for name, value in {
        "batch_sampler": reader,
        "_iterator": None,
        "generator": torch.Generator(),
        "persistent_workers": False,
    }.items():
        object.__setattr__(clone, name, value)
    return clone


def _draw(recorder: RecordingBatchSampler, length: int, cycles: bool) -> None:
    """Draw the batches of an epoch of ``length``, from as many passes as a loader that cycles will make."""
    for one_pass in recorder.passes():
        if one_pass.draw(length) or not cycles or not one_pass.batches:
            return
        length -= len(one_pass.batches)


def _shuffles(recorder: RecordingBatchSampler) -> bool:
    sampler = getattr(recorder.wrapped, "sampler", None)
    return isinstance(sampler, (RandomSampler, WeightedRandomSampler, SubsetRandomSampler)) or bool(
        getattr(sampler, "shuffle", False)
    )
