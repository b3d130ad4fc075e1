"""Read training data without a plan a second time, if the data allows this, to compute the mean row."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.plan import Plan, fresh_loader, loaded_beside
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler


class SecondReading:
    """A second reading of the training data: as many batches as an epoch has, in any composition.

    Args:
        loader: The training loader.
        parts: Copies of the loaders that it combines, with copies of their data.
        length: The number of training batches of an epoch; the reading may give fewer batches.
    """

    exact = False
    """Whether the data must give as many batches as ``length`` says."""

    def __init__(self, loader: CombinedLoader, parts: Sequence[Any], length: int) -> None:
        self.length = length
        self._loader = loader
        self._parts = parts

    @contextmanager
    def loaded(self) -> Iterator[Iterator[Any]]:
        """Load the batches; the workers end with the context."""
        parts = [fresh_loader(part) for part in self._parts]
        with loaded_beside(self._loader, parts, self.length, self._loader.limits) as batches:
            yield batches

    def sizes(self) -> list[int]:
        """The weight of each batch; all batches count alike, as in the steps."""
        return [1] * self.length

    def without_replacement(self, generator: torch.Generator) -> "SecondReading":
        """The same reading, since it is not known whether a sampler without a plan draws with replacement."""
        return self


Swept = Plan | SecondReading


def second_reading(trainer: Trainer) -> SecondReading | None:
    """A second reading of the training data, which does not disturb the first reading.

    Args:
        trainer: The trainer, inside a training epoch.

    Returns:
        The reading; None if the epoch has no known length, or if the data cannot be copied, such as a stream that is being
        read.
    """
    loader = compat.train_loader(trainer)
    if loader is None or math.isinf(trainer.num_training_batches):
        return None
    parts = [_copied(part) for part in loader.flattened]
    return None if None in parts else SecondReading(loader, parts, int(trainer.num_training_batches))


def _copied(loader: Any) -> Any:
    """A copy of the loader that shares no state with the loader; None if the loader cannot be copied."""
    if not isinstance(loader, DataLoader) or hasattr(loader.dataset, "__next__"):
        return None
    if hasattr(loader, "load_state_dict"):
        if not type(loader).__iter__.__module__.startswith("torchdata."):
            return None  # nothing is known of the state
        loader = _stateless(loader)
    memo = {} if isinstance(loader.dataset, IterableDataset) else {id(loader.dataset): loader.dataset}
    clone = copy.copy(loader)
    try:
        for name in ("dataset", "sampler", "batch_sampler"):
            part = getattr(loader, name)
            if isinstance(part, RecordingBatchSampler):  # its record belongs to the first reading
                part = part.wrapped
            object.__setattr__(clone, name, copy.deepcopy(part, memo))
    except Exception:  # a generator, an open file, a lock or a connection may raise any error
        return None
    return clone


def _stateless(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A plain DataLoader with the arguments of a StatefulDataLoader, whose state the second reading must not use."""
    plain: DataLoader[Any] = object.__new__(DataLoader)
    vars(plain).update(vars(loader))
    return plain
