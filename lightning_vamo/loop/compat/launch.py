"""Lightning's private parts to start a fit and to end a fit early."""

import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from lightning_vamo.loop.compat.attributes import replaced

_T = TypeVar("_T")


class FitEnded(Exception):
    """Raised in a hook to end a fit: see :func:`fit_until_ended`."""


def launched(trainer: Trainer, module: LightningModule, function: Callable[..., _T], *arguments: Any) -> _T:
    """Call a function as ``Trainer.fit`` does: in the processes that the strategy launches.

    Unlike ``fit``, this returns the function's result, also in a main process that forks or spawns the other processes.

    Args:
        trainer: The trainer.
        module: The module to fit.
        function: Called with the trainer, the module, and the arguments.
        arguments: Further arguments of the function.

    Returns:
        The function's result in this process, or in the process of rank 0 if this process did not call the function.
    """
    trainer.strategy._lightning_module = module
    trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
    trainer.training = True
    trainer.should_stop = False
    result: _T = call._call_and_handle_interrupt(trainer, function, trainer, module, *arguments)
    return result


def fit_until_ended(trainer: Trainer, module: LightningModule, **data: Any) -> None:
    """Fit, within :func:`launched`, until a hook raises :class:`FitEnded`; then clean up as Lightning's tuner does.

    Args:
        trainer: The trainer. The module's own callbacks are not added, and the trainer's callbacks cannot log.
        module: The module.
        data: Further arguments of ``Trainer.fit``.
    """
    connector = trainer._callback_connector
    with (
        replaced(connector, "_attach_model_callbacks", lambda: None),
        replaced(connector, "_attach_model_logging_functions", lambda: None),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
        try:
            trainer._fit_impl(module, **data)
        except FitEnded:
            call._call_teardown_hook(trainer)
            trainer._teardown()


def parts(trainer: Trainer) -> list[Any]:
    """The trainer and Lightning's objects in it: loops, their progress, connectors, strategy, plugins.

    The user's module, data, callbacks and loggers are left out, and so is the environment, which knows the launched processes.

    Args:
        trainer: The trainer.

    Returns:
        Each object once, the trainer first.
    """
    others = (LightningModule, LightningDataModule, Callback, Logger, ClusterEnvironment, Enum, type)
    found: dict[int, Any] = {}
    waiting: list[Any] = [trainer]
    while waiting:
        part = waiting.pop()
        is_part = any(base.__module__.split(".")[0] == "lightning" for base in type(part).__mro__)
        if id(part) not in found and is_part and not isinstance(part, others) and hasattr(part, "__dict__"):
            found[id(part)] = part
            waiting += vars(part).values()
    return list(found.values())


def fits_in_other_processes(trainer: Trainer) -> bool:
    """Whether a fit runs in processes that are forked or spawned from this process, which then must not touch the GPUs."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
