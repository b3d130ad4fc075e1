"""Silence a module: drop everything that the module logs."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger

from lightning_vamo.loop import compat


@contextmanager
def silent(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Make a context that drops whatever the module logs through ``self.log`` or ``self.logger``."""
    loggers = trainer.loggers
    if loggers:  # Lightning makes a new list of an empty one, and an exchanged list costs the guards another walk
        trainer.loggers = _silenced(trainer, loggers)
    try:
        # On the instance, so that the place of the mixin in the class statement does not matter; `log_dict` calls `log`.
        with compat.replaced(module, "log", _drop):
            yield
    finally:
        if loggers or trainer.loggers:
            trainer.loggers = loggers


def _drop(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``self.log``; always the same function, so that the guards see no change."""


def _silenced(trainer: Trainer, loggers: Sequence[Logger]) -> list[Any]:
    """The stand-ins for a trainer's loggers: the same list each time, while the loggers are the same."""
    stand_ins = _stand_ins.get(trainer)
    if stand_ins is None or len(stand_ins) != len(loggers) or not all(map(is_, (one.of() for one in stand_ins), loggers)):
        stand_ins = _stand_ins[trainer] = [_SilentLogger(logger) for logger in loggers]
    return stand_ins


class _SilentLogger(DummyLogger):
    """Stands in for a logger: has the logger's name and folders, and drops everything that is logged."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self.of = weakref.ref(logger)  # a logger may refer to its trainer, whose memory would then never be freed

    @property
    def name(self) -> Any:
        return getattr(self.of(), "name", None)

    @property
    def version(self) -> Any:
        return getattr(self.of(), "version", None)

    @property
    def save_dir(self) -> str | None:
        return getattr(self.of(), "save_dir", None)

    @property
    def root_dir(self) -> str | None:
        return getattr(self.of(), "root_dir", None)

    @property
    def log_dir(self) -> str | None:
        return getattr(self.of(), "log_dir", None)


_stand_ins: "weakref.WeakKeyDictionary[Trainer, list[_SilentLogger]]" = weakref.WeakKeyDictionary()
