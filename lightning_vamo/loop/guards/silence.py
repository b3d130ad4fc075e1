"""Drop what a module logs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger

from lightning_vamo.loop import compat


@contextmanager
def silent(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Drop whatever the module logs, through ``self.log`` or through ``self.logger``."""
    loggers = trainer.loggers
    trainer.loggers = [_SilentLogger(logger) for logger in loggers]
    try:
        # On the instance, so that it holds wherever the mixin stands in the class statement; `log_dict` goes through it.
        with compat.replaced(module, "log", lambda *args, **kwargs: None):
            yield
    finally:
        trainer.loggers = loggers


class _SilentLogger(DummyLogger):
    """Stands in for a logger: knows its name and folders, and drops what is logged."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def name(self) -> Any:
        return self._logger.name

    @property
    def version(self) -> Any:
        return self._logger.version

    @property
    def save_dir(self) -> str | None:
        return self._logger.save_dir

    @property
    def root_dir(self) -> str | None:
        return getattr(self._logger, "root_dir", None)

    @property
    def log_dir(self) -> str | None:
        return getattr(self._logger, "log_dir", None)
