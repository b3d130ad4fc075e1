"""Record the batches that a training loader draws, without a change to the loader's draws.

A recorder wraps the batch sampler and records its batches. The training loader and the sweep's loader read the same record,
each at its own pace, so nothing is drawn twice and no random state is rewound.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from lightning_vamo.errors import UnsupportedError


class Pass:
    """Records one pass over a batch sampler, so that any number of readers see the same batches.

    Args:
        source: The batch sampler, or the batches of an earlier pass.
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self.batches: list[Any] = []
        """The batches drawn so far, in the form of the sampler, which is most often a list of indices."""
        self._source = source
        self._iterator: Iterator[Any] | None = None

    @classmethod
    def of(cls, batches: Sequence[Any]) -> "Pass":
        """A pass with the given batches."""
        one_pass = cls(batches)
        one_pass.draw(len(batches))
        return one_pass

    def draw(self, count: int) -> bool:
        """Draw from the source until ``count`` batches are known.

        Args:
            count: Number of batches.

        Returns:
            Whether the source had as many batches.
        """
        while len(self.batches) < count:
            # Started as late as possible, since most samplers draw from the global generator when they start.
            self._iterator = self._iterator or iter(self._source)
            try:
                # Copies, here and for the readers: a sampler may reuse its list, and a dataset may consume the list it gets.
                self.batches.append(copy.copy(next(self._iterator)))
            except StopIteration:
                return False
        return True

    def __iter__(self) -> Iterator[Any]:
        """Read the pass from its beginning; batches that no reader has drawn before are drawn."""
        position = 0
        while self.draw(position + 1):
            yield copy.copy(self.batches[position])
            position += 1


_OWN = ("wrapped", "current", "_queue")


class RecordingBatchSampler:
    """Wraps a batch sampler, behaves in the same way, and records the present pass.

    Args:
        batch_sampler: The user's batch sampler.
    """

    def __init__(self, batch_sampler: Any) -> None:
        self.wrapped = batch_sampler
        self.current: Pass | None = None
        """The pass that the training loader began last."""
        self._queue: deque[Pass] = deque()

    def __iter__(self) -> Iterator[Any]:
        """Begin the next pass when its first batch is requested: a loader with workers makes iterators that it never uses."""
        self.current = self._queue.popleft() if self._queue else Pass(self.wrapped)
        yield from self.current

    def __len__(self) -> int:
        """Number of batches of a pass."""
        return len(self.wrapped)

    def __getattr__(self, name: str) -> Any:
        """Read any other attribute, such as ``sampler`` or ``set_epoch``, from the wrapped sampler."""
        if name in _OWN:  # not set yet while a copy or an unpickled object is being built
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set any other attribute, such as ``epoch``, on the wrapped sampler."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.wrapped, name, value)

    def passes(self) -> Iterator[Pass]:
        """The current pass, and the passes that the training loader begins later in the epoch if it cycles."""
        if self.current is None:
            raise UnsupportedError(
                "The training DataLoader was not iterated through its batch sampler, so the coming batches are not known: do"
                " not override `__iter__` in a DataLoader, or set control='recompute' (SVRGCallback: gradients='recompute')."
            )
        yield self.current
        index = 0
        while True:
            if index == len(self._queue):
                self._queue.append(Pass(self.wrapped))
            yield self._queue[index]
            index += 1

    def replay(self, passes: Sequence[Iterable[Any]]) -> None:
        """Replace the training loader's queued passes by these passes.

        Args:
            passes: The batches of each pass.
        """
        self._queue = deque(Pass(batches) for batches in passes)
