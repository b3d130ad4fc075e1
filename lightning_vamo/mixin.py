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


class VAMOMixin:
    """Lets a LightningModule train with VAMO or another method; put it before the LightningModule in the class statement.

    The module's ``training_step`` stays as it is: it returns a loss, a dict with ``"loss"``, or None to skip the batch. The
    mixin takes no arguments and keeps no state: hyperparameters and state are on :class:`~lightning_vamo.VAMOCallback`, so
    ``save_hyperparameters``, checkpoints and ``load_from_checkpoint`` work as in the plain module.

    Without a Trainer, or outside ``Trainer.fit``, the module is the plain module.

    Example:
        >>> import lightning as L
        >>> class LitModel(L.LightningModule): ...
        >>> class VAMOModel(VAMOMixin, LitModel): ...
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the callback answer calls of the class's ``training_step``, which may be defined anywhere in the class hierarchy.

        Raises:
            UnsupportedError: If the mixin stands after a LightningModule among the bases, or if the LightningModule is from the
                package ``pytorch_lightning``.
        """
        super().__init_subclass__(**kwargs)
        check_package(cls.__name__, cls)
        behind = cls.__mro__[: cls.__mro__.index(VAMOMixin)]
        if any(issubclass(base, LightningModule) and not issubclass(base, VAMOMixin) for base in behind):
            raise UnsupportedError(
                f"{cls.__name__} names the VAMOMixin after its LightningModule: put the mixin first, as in"
                f" class {cls.__name__}(VAMOMixin, ...)."
            )
        step = getattr(cls, "training_step", None)
        if step is not None and not compat.is_driven(step):
            cls.training_step = _driven(step)  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Check, before any work is done, that the Trainer has the callback that the mixin needs.

        Args:
            stage: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            UnsupportedError: If the module is to be fitted and the Trainer has no callback of a method.
        """
        trainer = self.trainer  # type: ignore[attr-defined]
        if stage == "fit" and _driver(trainer) is None:
            raise UnsupportedError(
                f"{type(self).__name__} has the VAMOMixin, but the Trainer has no callback of a method: add a callback, as in"
                " Trainer(callbacks=[VAMOCallback(probes=...)]), or train the class without the mixin."
            )
        super().setup(stage)  # type: ignore[misc]

    @classmethod
    def has_own_probe_loss(cls) -> bool:
        """Whether a class before or after the mixin defines ``probe_loss``."""
        return any("probe_loss" in vars(base) for base in cls.__mro__ if base is not VAMOMixin)

    def probe_loss(self, batch: Any, batch_idx: int) -> Tensor | float | None:
        """The loss that the sweep evaluates; by default the loss that ``training_step`` returns.

        Define this method if ``training_step`` has side effects, or if there is a cheaper form of the loss: the sweep calls
        ``probe_loss`` ``1 + q`` times per batch, without gradients, in train mode, under the Trainer's precision. The calls
        leave no trace on the module, its metrics or the loggers.

        Args:
            batch: The batch, on the module's device.
            batch_idx: Position of the batch in the epoch.

        Returns:
            A tensor of one element or a number, or None to skip the batch.
        """
        own = getattr(super(), "probe_loss", None)
        if own is not None:  # a class after the mixin defines `probe_loss`
            loss: Tensor | float | None = own(batch, batch_idx)
            return loss
        step: Callable[..., Any] = self.training_step  # type: ignore[attr-defined]
        return compat.step_loss(step(*compat.step_arguments(step, batch, batch_idx)))


_Module = TypeVar("_Module", bound=LightningModule)


def with_vamo(module: _Module) -> _Module:
    """Give an existing module the mixin.

    The object stays the same, with its weights and hyperparameters. Its class becomes a subclass of the old class, with the
    mixin first. Checkpoints stay the same as those of the plain class.

    Args:
        module: A LightningModule.

    Returns:
        The same object.

    Raises:
        UnsupportedError: If ``module`` is not a LightningModule, or if its ``training_step`` was replaced on the object.

    Example:
        >>> import lightning as L
        >>> module = with_vamo(L.LightningModule())
        >>> isinstance(module, VAMOMixin)
        True
    """
    check_package("module", module)
    if not isinstance(module, LightningModule):
        raise UnsupportedError(
            f"`module` must be a LightningModule, got {type(module).__name__}: pass the module itself. If it was compiled as a"
            " whole, compile its submodules instead."
        )
    if "training_step" in vars(module):
        raise UnsupportedError(
            f"`training_step` was replaced on this {type(module).__name__} object, where the mixin does not see it: define"
            " `training_step` in the class."
        )
    if not isinstance(module, VAMOMixin):
        module.__class__ = mixed_class(type(module))
    return module


_MIXED: dict[type, Any] = {}


def mixed_class(cls: type[LightningModule]) -> Any:
    """The subclass of ``cls`` with the mixin first; its objects can be pickled, although the subclass cannot be imported.

    Args:
        cls: A LightningModule class.

    Returns:
        The class, the same at every call.
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
    def training_step(self: LightningModule, *args: Any, **kwargs: Any) -> Any:
        trainer = compat.trainer_of(self)
        driver = None if trainer is None else _driver(trainer)
        if driver is None or not driver.answers:
            return user_step(self, *args, **kwargs)
        batch = next(iter((*args, *kwargs.values())), None)
        return driver.drive(self, functools.partial(user_step, self, *args, **kwargs), batch)

    return compat.driven(training_step, user_step)


def _driver(trainer: Trainer) -> Driver | None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DrivingCallback):
            return callback.driver
    return None
