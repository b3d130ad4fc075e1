"""Whether keeping the batches of an epoch keeps data from the training, or keeps the batches for long enough to be of use."""

from lightning.pytorch import Trainer
from torch.utils.data import RandomSampler, WeightedRandomSampler

from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.plan import recorders_of, shuffles
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler

_MOST = 0.01
"""The largest share of the data that an epoch may leave out, as a last batch that is too small."""


def is_whole(trainer: Trainer) -> bool:
    """Whether each epoch trains on all of its data, as far as torch's samplers tell; else each epoch draws other samples.

    Args:
        trainer: The trainer, inside a training epoch whose batches are recorded.

    Returns:
        Whether the data that later epochs train on is the same, but for a hundredth.
    """
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the first batch"
    return all(_left_out(recorder, int(trainer.num_training_batches)) <= _MOST for recorder in recorders_of(loader))


def _left_out(recorder: RecordingBatchSampler, length: int) -> float:
    """The share of its data that a loader leaves out in an epoch, which other epochs may draw."""
    sampler, size = getattr(recorder.wrapped, "sampler", None), getattr(recorder.wrapped, "batch_size", None)
    if isinstance(sampler, WeightedRandomSampler) or getattr(sampler, "replacement", False):
        return 1.0
    if not shuffles(recorder):
        return 0.0
    try:
        batches, drawn = len(recorder), len(sampler)  # type: ignore[arg-type]  # most samplers have a length
        samples = max(drawn, len(sampler.data_source) if isinstance(sampler, RandomSampler) else 0)
    except TypeError:
        return 1.0
    trained = min(drawn, min(length, batches) * size) if size else drawn * min(length, batches) / max(1, batches)
    return 1 - trained / max(1, samples)


def lasts(trainer: Trainer) -> bool:
    """Whether the loaders last longer than the two epochs in which a table of rows is filled and judged.

    Args:
        trainer: The trainer.

    Returns:
        Whether they do.
    """
    return not 0 < trainer.reload_dataloaders_every_n_epochs <= 2  # type: ignore[attr-defined]
