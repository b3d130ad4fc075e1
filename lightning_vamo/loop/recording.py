"""Recording which batches a training loader draws, without disturbing it.

A batch sampler is wrapped so that what it yields is recorded. The training loader and the sweep's loader read the same
recording, each at its own pace, so nothing is drawn twice and no random state is rewound.
"""

import copy
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop.compat import replaced


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

    @classmethod
    def of(cls, batches: Sequence[Any]) -> "Pass":
        """A pass that has been drawn to its end."""
        one_pass = cls(batches)
        one_pass.draw(len(batches))
        return one_pass

    def draw(self, count: int) -> bool:
        """Draw from the source until ``count`` batches are known.

        Args:
            count: How many.

        Returns:
            Whether the source had that many.
        """
        while len(self.batches) < count:
            # Started as late as possible: most samplers take from the global generator when they start.
            self._iterator = self._iterator or iter(self._source)
            try:
                # Copies, here and for the readers: a sampler may reuse its list, and a dataset may consume the one it gets.
                self.batches.append(copy.copy(next(self._iterator)))
            except StopIteration:
                return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Read the pass from its beginning, drawing what no reader has drawn before."""
        position = 0
        while self.draw(position + 1):
            yield copy.copy(self.batches[position])
            position += 1


_OWN = ("wrapped", "current", "_queue")


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
        if name in _OWN:  # not there yet while a copy or an unpickled object is being built
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Setting anything else, such as ``epoch``, sets it on the wrapped sampler."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.wrapped, name, value)

    def passes(self) -> Iterator[Pass]:
        """The current pass, and the ones that the training loader will begin after it if it runs out within the epoch."""
        if self.current is None:
            raise UnsupportedError(
                "The training DataLoader was not iterated through its batch sampler, so VAMO cannot tell which batches come:"
                " do not override `__iter__` in a DataLoader, set control='recompute' (not with carry=True), or train with"
                " probes=0."
            )
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


def record(loader: object) -> RecordingBatchSampler:
    """Make a training loader record the batches that it draws.

    Args:
        loader: The loader, after Lightning has prepared it.

    Returns:
        The recorder, now the loader's batch sampler; assign its ``wrapped`` back to undo.

    Raises:
        UnsupportedError: If there is no plan to record: see :func:`check_loader`.
    """
    loader = check_loader(loader)
    iterator = loader._iterator
    if iterator is not None:
        # Persistent workers of an earlier use, which would go on reading the sampler that they began with.
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()
        loader._iterator = None
    # A loader that the Trainer sets up again starts afresh.
    sampler = loader.batch_sampler
    recorder = RecordingBatchSampler(sampler.wrapped if isinstance(sampler, RecordingBatchSampler) else sampler)
    # DataLoader forbids assigning its batch sampler after construction; its iterators read it anew each time.
    object.__setattr__(loader, "batch_sampler", recorder)
    return recorder


def check_loader(loader: object) -> DataLoader[Any]:
    """Refuse training data whose batches cannot be told before they are trained on.

    Args:
        loader: What the Trainer is to train on.

    Returns:
        The same object.

    Raises:
        UnsupportedError: If it is not a DataLoader, iterates over an IterableDataset, does not batch, delivers out of order, or
            resumes by itself.
    """
    advice = (
        "With control='replay' VAMO evaluates the very batches of the coming epoch before it trains on them, so it needs a"
        " DataLoader over a map-style dataset with a batch sampler"
    )
    if not isinstance(loader, DataLoader):
        raise UnsupportedError(
            f"The training data is a {type(loader).__name__}. {advice}: pass a torch.utils.data.DataLoader, set"
            " control='recompute' (not with carry=True), or train with probes=0."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedError(
            f"The training DataLoader iterates over {type(loader.dataset).__name__}, an IterableDataset. {advice}: give"
            " the dataset `__getitem__` and `__len__`, set control='recompute' (not with carry=True), or train with probes=0."
        )
    if loader.batch_sampler is None:
        raise UnsupportedError(
            f"The training DataLoader has batch_size=None. {advice}: set a batch_size or a batch_sampler, set"
            " control='recompute' (not with carry=True), or train with probes=0."
        )
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise UnsupportedError(
            "The training DataLoader has in_order=False, so its workers may deliver batches in another order than VAMO saw"
            " them in: set in_order=True or control='recompute' (not with carry=True), or train with probes=0."
        )
    if hasattr(loader, "load_state_dict"):
        raise UnsupportedError(
            f"The training data is a {type(loader).__name__}, which resumes in mid-epoch by itself, so VAMO would take its"
            " batches for others: use a torch.utils.data.DataLoader, set control='recompute' (not with carry=True), or train"
            " with probes=0."
        )
    return loader


def can_record(loader: object) -> bool:
    """Whether :func:`check_loader` accepts a loader."""
    try:
        check_loader(loader)
    except UnsupportedError:
        return False
    return True


@contextmanager
def recording(
    trainer: Trainer, prepare: Callable[[RecordingBatchSampler, int], None], *, required: bool = True
) -> Iterator[None]:
    """Let every training loader that the Trainer sets up within the context record its plan; afterwards none does.

    ``Strategy.process_dataloader`` runs after Lightning has injected its samplers and before the loader is iterated, also
    when loaders are reloaded.

    Args:
        trainer: The trainer.
        prepare: Called with each recorder, and how many there were before it, before anything is drawn from it.
        required: Whether a loader that cannot be recorded is refused; else it is left alone.
    """
    process = trainer.strategy.process_dataloader
    # Weakly, so that loaders which are reloaded do not pile up, with their datasets and workers.
    recorded: list[weakref.ref[Any]] = []

    def process_dataloader(loader: object) -> object:
        loader = process(loader)
        if trainer.training and (required or can_record(loader)):
            prepare(record(loader), len(recorded))
            recorded.append(weakref.ref(loader))
        return loader

    try:
        with replaced(trainer.strategy, "process_dataloader", process_dataloader):
            yield
    finally:
        for loader in (reference() for reference in recorded):
            if loader is not None and isinstance(loader.batch_sampler, RecordingBatchSampler):
                object.__setattr__(loader, "batch_sampler", loader.batch_sampler.wrapped)
