"""The mixin that lets a callback run the training steps of a LightningModule."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.errors import UnsupportedError
from lightning_vamo.loop import compat
from lightning_vamo.loop.checks import check_package
from lightning_vamo.loop.step.driver import Driver, DrivingCallback

_DRIVEN = "_vamo_driven"


class VAMOMixin:
    """The mixin in front of a LightningModule that lets the module train with VAMO; nothing else in the module changes.

    The module's ``training_step`` stays as it is: it returns a loss, a dict with ``"loss"``, or None to skip the batch. The
    mixin takes no arguments and keeps no state: hyperparameters and state live on :class:`~lightning_vamo.VAMOCallback`, so
    ``save_hyperparameters``, checkpoints and ``load_from_checkpoint`` are those of the plain module.

    Without a Trainer, or outside ``Trainer.fit``, the module is the plain module.

    Example:
        >>> import lightning as L
        >>> class LitModel(L.LightningModule): ...
        >>> class VAMOModel(VAMOMixin, LitModel): ...
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the callback answer calls of the class's ``training_step``, wherever in the hierarchy it is defined.

        Raises:
            UnsupportedError: If the mixin stands behind a LightningModule among the bases, or the module is one of the package
                ``pytorch_lightning``.
        """
        super().__init_subclass__(**kwargs)
        check_package(cls.__name__, cls)
        behind = cls.__mro__[: cls.__mro__.index(VAMOMixin)]
        if any(issubclass(base, LightningModule) and not issubclass(base, VAMOMixin) for base in behind):
            raise UnsupportedError(f"{cls.__name__} names the VAMOMixin behind its LightningModule: put the mixin first.")
        step = getattr(cls, "training_step", None)
        if step is not None and not hasattr(step, _DRIVEN):
            cls.training_step = _driven(step)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Check, before any work is done, that the Trainer has the callback that the mixin needs.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            UnsupportedError: If the module is to be fitted and there is no callback to drive it.
        """
        trainer = self.trainer  # type: ignore[attr-defined]
        if stage == "fit" and _driver(trainer) is None:
            raise UnsupportedError(
                f"{type(self).__name__} has the VAMOMixin, but the Trainer has no callback of a method: add one,"
                " such as Trainer(callbacks=[VAMOCallback(probes=...)]), or train the class without the mixin."
            )
        super().setup(stage)  # type: ignore[misc]

    @classmethod
    def has_own_probe_loss(cls) -> bool:
        """Whether the class defines the loss to probe, in front of the mixin or behind it."""
        return any("probe_loss" in vars(base) for base in cls.__mro__ if base is not VAMOMixin)

    def probe_loss(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The loss that the sweep evaluates; define this method if the loss is not the one that ``training_step`` returns.

        A cheaper form of the loss, or one without side effects, is worth the while: the sweep calls it ``1 + q`` times per
        batch. It is called without gradients, in train mode, under the Trainer's precision, and leaves no trace on the
        module, its metrics or the loggers.

        Args:
            batch: The batch, on the module's device.
            batch_idx: Its position in the epoch.

        Returns:
            A tensor of one element, or None to skip the batch.
        """
        own = getattr(super(), "probe_loss", None)
        if own is not None:  # the class behind the mixin defines it
            loss: Tensor | None = own(batch, batch_idx)
            return loss
        step: Callable[..., Any] = self.training_step  # type: ignore[attr-defined]
        return compat.step_loss(step(*compat.step_arguments(step, batch, batch_idx)))


_Module = TypeVar("_Module", bound=LightningModule)


def with_vamo(module: _Module) -> _Module:
    """Give an existing module the mixin.

    The object stays the same, with its weights and hyperparameters; only its class becomes a subclass of what it was,
    with the mixin in front. Checkpoints stay those of the plain class.

    Args:
        module: A LightningModule.

    Returns:
        The same object.

    Raises:
        UnsupportedError: If it is not a LightningModule, or its ``training_step`` is not its class's.

    Example:
        >>> import lightning as L
        >>> module = with_vamo(L.LightningModule())
        >>> isinstance(module, VAMOMixin)
        True
    """
    check_package("module", module)
    if not isinstance(module, LightningModule):
        raise UnsupportedError(
            f"`module` must be a LightningModule, got {type(module).__name__}: pass the module itself; of a compiled one,"
            " compile the submodules instead."
        )
    if "training_step" in vars(module):
        raise UnsupportedError(
            f"`training_step` was replaced on this {type(module).__name__} object, where the mixin does not see it: define it"
            " in the class."
        )
    if not isinstance(module, VAMOMixin):
        module.__class__ = mixed_class(type(module))
    return module


_MIXED: dict[type, Any] = {}


def mixed_class(cls: type[LightningModule]) -> Any:
    """The subclass of ``cls`` with the mixin in front; its objects can be pickled although it has no name to import.

    Args:
        cls: A LightningModule class.

    Returns:
        The class, the same one at every call.
    """
    if cls in _MIXED:
        return _MIXED[cls]

    def reduce(self: Any, protocol: Any) -> Any:
        _, arguments, *state = cast("tuple[Any, ...]", cls.__reduce_ex__(self, max(2, protocol)))
        return (_rebuild, (cls, *arguments[1:]), *state)

    namespace = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__reduce_ex__": reduce}
    _MIXED[cls] = type(f"VAMO{cls.__name__}", (VAMOMixin, cls), namespace)
    return _MIXED[cls]


def _rebuild(cls: type[LightningModule], *arguments: Any) -> Any:
    mixed = mixed_class(cls)
    return mixed.__new__(mixed, *arguments)


def _driven(user_step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(user_step)  # also keeps the signature, from which Lightning tells which arguments to pass
    def training_step(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        trainer = compat.trainer_of(self)
        driver = None if trainer is None else _driver(trainer)
        if driver is None:
            return user_step(self, *args, **kwargs)
        batch = next(iter((*args, *kwargs.values())), None)
        return driver.drive(self, functools.partial(user_step, self, *args, **kwargs), batch)

    setattr(training_step, _DRIVEN, True)
    return training_step


def _driver(trainer: Trainer) -> Driver | None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DrivingCallback):
            return callback.driver
    return None
