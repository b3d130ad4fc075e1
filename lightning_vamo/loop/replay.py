"""The epoch's plan of batches: looked at before the epoch trains on it, without disturbing it.

A batch sampler is wrapped so that what it yields is recorded. The training loader and the sweep's loader read the same
recording, each at its own pace, so row ``k`` of the table belongs to the batch of step ``k`` by construction: nothing is drawn
twice, no random state is rewound, and epochs without a sweep draw their batches exactly when they would have anyway.
"""

import copy
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat


class Pass:
    """One pass over a batch sampler, recorded as it is drawn; any number of readers see the same batches.

    Args:
        source: The batch sampler, or the batches of an earlier pass.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.batches: list[Any] = []
        """The batches drawn so far, each as the sampler gave it: most often a list of indices."""
        self._source = source
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        """Read the pass from its beginning, drawing what no reader has drawn before."""
        position = 0
        while True:
            if position == len(self.batches):
                # Started as late as possible: most samplers take from the global generator when they start.
                self._iterator = self._iterator or iter(self._source)
                try:
                    self.batches.append(next(self._iterator))
                except StopIteration:
                    return
            yield self.batches[position]
            position += 1


class RecordingBatchSampler:
    """A batch sampler that behaves like the one it wraps, and remembers the pass that is being read.

    Args:
        batch_sampler: The user's batch sampler.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.wrapped = batch_sampler
        self.current: Pass | None = None
        """The pass that the training loader began last."""
        self._queue: deque[Pass] = deque()

    def __iter__(self) -> Iterator[Any]:
        """Begin the next pass, once its first batch is asked for: a loader with workers makes iterators that it never uses."""
        self.current = self._queue.popleft() if self._queue else Pass(self.wrapped)
        yield from self.current

    def __len__(self) -> int:
        """Number of batches of a pass."""
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        """Anything else, such as ``sampler`` or ``set_epoch``, is the wrapped sampler's."""
        if name == "wrapped":  # not there yet while a copy or an unpickled object is being built
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def passes(self) -> Iterator[Pass]:
        """The current pass, and the ones that the training loader will begin after it if it runs out within the epoch."""
        assert self.current is not None, "the training loader has not been iterated yet"
        yield self.current
        index = 0
        while True:
            if index == len(self._queue):
                self._queue.append(Pass(self.wrapped))
            yield self._queue[index]
            index += 1

    def replay(self, passes: Sequence[Iterable[Any]]) -> None:
        """Let the training loader's next passes be these, in place of whatever was queued.

        Args:
            passes: The batches of each pass.
        """
        self._queue = deque(Pass(batches) for batches in passes)


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


def record(loader: object) -> RecordingBatchSampler:
    """Make a training loader record the batches that it draws.

    Args:
        loader: The loader, after Lightning has prepared it.

    Returns:
        The recorder, now the loader's batch sampler; assign its ``wrapped`` back to undo.

    Raises:
        UnsupportedError: If there is no plan to record: not a DataLoader, an IterableDataset, or no batching.
    """
    advice = (
        "VAMO evaluates the very batches of the coming epoch before it trains on them, so it needs a DataLoader over a"
        " map-style dataset with a batch sampler"
    )
    if not isinstance(loader, DataLoader):
        raise UnsupportedError(
            f"The training data is a {type(loader).__name__}. {advice}: pass a torch.utils.data.DataLoader, or train"
            " with probes=0."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedError(
            f"The training DataLoader iterates over {type(loader.dataset).__name__}, an IterableDataset. {advice}: give"
            " the dataset `__getitem__` and `__len__`, or train with probes=0."
        )
    if loader.batch_sampler is None:
        raise UnsupportedError(
            f"The training DataLoader has batch_size=None. {advice}: set a batch_size or a batch_sampler, or train with"
            " probes=0."
        )
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise UnsupportedError(
            "The training DataLoader has in_order=False, so its workers may deliver batches in another order than VAMO saw"
            " them in: set in_order=True, or train with probes=0."
        )
    # A loader that the Trainer sets up again starts afresh.
    sampler = loader.batch_sampler
    recorder = RecordingBatchSampler(sampler.wrapped if isinstance(sampler, RecordingBatchSampler) else sampler)
    # DataLoader forbids assigning its batch sampler after construction; its iterators read it anew each time.
    object.__setattr__(loader, "batch_sampler", recorder)
    return recorder


class Plan:
    """The batches of one epoch, in the order in which the training epoch takes them.

    Args:
        loader: The training loader, whose loaders record, with the epoch's first batch drawn.
        length: ``K``, the number of training batches of the epoch.
    """

    def __init__(self, loader: CombinedLoader, length: int) -> None:
        self.length = length
        self._recorders = [_recorder(part) for part in loader.flattened]
        self._readers = [_Reader(recorder) for recorder in self._recorders]
        samplers = [getattr(recorder.wrapped, "sampler", None) for recorder in self._recorders]
        self._keeps_order = len(samplers) > 1 or isinstance(samplers[0], SequentialSampler)
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

        The order is reshuffled, unless the data is read in sequence, or several loaders run side by side.

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
        order = torch.randperm(self.length, generator=generator).tolist()
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


@contextmanager
def recording(trainer: Trainer) -> Iterator[None]:
    """Let every training loader that the Trainer sets up within the context record its plan; afterwards none does.

    ``Strategy.process_dataloader`` runs after Lightning has injected its samplers and before the loader is iterated, also
    when loaders are reloaded.
    """
    strategy = trainer.strategy
    process = strategy.process_dataloader
    recorded: list[tuple[Any, RecordingBatchSampler]] = []

    def process_dataloader(loader: object) -> object:
        loader = process(loader)
        if trainer.training:
            recorded.append((loader, record(loader)))
        return loader

    strategy.process_dataloader = process_dataloader  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del strategy.process_dataloader
        for loader, recorder in recorded:
            object.__setattr__(loader, "batch_sampler", recorder.wrapped)
