"""Check whether the batches of training data are known before an epoch trains on them."""

from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from lightning_vamo.errors import UnsupportedError

INSTEAD = "set control='recompute', or train with probes=0"
"""The remedy with VAMO if batches cannot be known before an epoch, for messages."""


def check_loader(loader: object, instead: str = INSTEAD) -> DataLoader[Any]:
    """Refuse training data whose batches are not known before an epoch trains on them.

    Args:
        loader: The training data of the Trainer.
        instead: Another remedy, for the message.

    Returns:
        The same object.

    Raises:
        UnsupportedError: If the data is not a DataLoader, or if the loader iterates over an IterableDataset, does not batch,
            delivers batches out of order, or resumes by itself.
    """
    advice = (
        "The control variate needs the epoch's batches before the epoch trains on them, and only a DataLoader over a map-style"
        " dataset with a batch sampler tells them"
    )
    if not isinstance(loader, DataLoader):
        raise UnsupportedError(
            f"The training data is a {type(loader).__name__}. {advice}: pass a torch.utils.data.DataLoader, {instead}."
        )
    if isinstance(loader.dataset, IterableDataset):
        raise UnsupportedError(
            f"The training DataLoader iterates over {type(loader.dataset).__name__}, an IterableDataset. {advice}: give"
            f" the dataset `__getitem__` and `__len__`, {instead}."
        )
    if loader.batch_sampler is None:
        raise UnsupportedError(
            f"The training DataLoader has batch_size=None. {advice}: set a batch_size or a batch_sampler, {instead}."
        )
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise UnsupportedError(
            "The training DataLoader has in_order=False, so its workers may deliver batches in an order that is not known"
            f" before the epoch: set in_order=True, {instead}."
        )
    if hasattr(loader, "load_state_dict"):
        raise UnsupportedError(
            f"The training data is a {type(loader).__name__}, which resumes in mid-epoch by itself, so its batches could be"
            f" mistaken for other batches: use a torch.utils.data.DataLoader, {instead}."
        )
    return loader


def can_record(loader: object) -> bool:
    """Whether :func:`check_loader` accepts a loader."""
    try:
        check_loader(loader)
    except UnsupportedError:
        return False
    return True
