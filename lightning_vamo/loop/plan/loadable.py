"""Check whether the batches of training data are known before an epoch trains on them."""

from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset

from lightning_vamo.errors import UnsupportedError

INSTEAD = "set control='recompute', or train with probes=0"
"""The remedy with VAMO if batches cannot be known before an epoch, for messages."""


_ADVICE = (
    "The control variate needs the epoch's batches before the epoch trains on them, and only a DataLoader over a map-style"
    " dataset with a batch sampler tells them"
)


def obstacles(loader: CombinedLoader | None) -> list[str]:
    """The reasons why the batches of training data are not known before an epoch, as sentences without their full stop."""
    found = [] if loader is None else [_obstacle(part) for part in loader.flattened]
    return [each[0] for each in found if each is not None]


def _obstacle(loader: object) -> tuple[str, str] | None:
    """The reason why the batches of a loader are not known before an epoch trains on them, and the remedy.

    Args:
        loader: The loader.

    Returns:
        A sentence without its full stop, and the remedy; None if the batches are known.
    """
    if not isinstance(loader, DataLoader):
        return f"The training data is a {type(loader).__name__}", "pass a torch.utils.data.DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        iterates = f"The training DataLoader iterates over {type(loader.dataset).__name__}, an IterableDataset"
        return iterates, "give the dataset `__getitem__` and `__len__`"
    if loader.batch_sampler is None:
        return "The training DataLoader has batch_size=None", "set a batch_size or a batch_sampler"
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        order = "in_order=False, so its workers may deliver batches in an order that is not known before the epoch"
        return f"The training DataLoader has {order}", "set in_order=True"
    if hasattr(loader, "load_state_dict"):
        resumes = (
            f"The training data is a {type(loader).__name__}, which resumes in mid-epoch by itself, so that after a resume its"
            " batches could be mistaken for other batches"
        )
        return resumes, "use a torch.utils.data.DataLoader"
    return None


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
    found = _obstacle(loader)
    if found is not None:
        reason, remedy = found
        raise UnsupportedError(f"{reason}. {_ADVICE}: {remedy}, {instead}.")
    assert isinstance(loader, DataLoader), "anything else is an obstacle"
    return loader


def can_record(loader: object) -> bool:
    """Whether :func:`check_loader` accepts a loader."""
    return _obstacle(loader) is None
