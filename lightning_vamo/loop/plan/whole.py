"""Whether keeping the batches of an epoch keeps data from the training, or keeps the batches for long enough to be of use."""

from lightning.pytorch import Trainer
from torch.utils.data import RandomSampler, WeightedRandomSampler

from lightning_vamo.loop import compat
from lightning_vamo.loop.plan.plan import recorders_of, shuffles
from lightning_vamo.loop.plan.recorder import RecordingBatchSampler


def is_whole(trainer: Trainer) -> bool:
    """Whether an epoch trains on all of its data, as far as torch's samplers tell; else each epoch draws other samples.

    Args:
        trainer: The trainer, inside a training epoch whose batches are recorded.

    Returns:
        Whether the data that later epochs train on is the same.
    """
    loader = compat.train_loader(trainer)
    assert loader is not None, "the training loader is set up before the first batch"
    return not any(_draws_a_part(recorder, int(trainer.num_training_batches)) for recorder in recorders_of(loader))


def _draws_a_part(recorder: RecordingBatchSampler, length: int) -> bool:
    sampler = getattr(recorder.wrapped, "sampler", None)
    if isinstance(sampler, WeightedRandomSampler) or (isinstance(sampler, RandomSampler) and sampler.replacement):
        return True
    if isinstance(sampler, RandomSampler) and sampler.num_samples < len(sampler.data_source):
        return True
    return shuffles(recorder) and length < len(recorder)


def lasts(trainer: Trainer) -> bool:
    """Whether the loaders last longer than the two epochs in which a table of rows is filled and judged.

    Args:
        trainer: The trainer.

    Returns:
        Whether they do.
    """
    return not 0 < trainer.reload_dataloaders_every_n_epochs <= 2  # type: ignore[attr-defined]
