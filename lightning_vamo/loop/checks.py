"""Checks of the Trainer and the module: a configuration that cannot be trained is refused as early as possible."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_vamo.core.control.mixing import Alpha, effective_coefficient
from lightning_vamo.core.directions import Directions
from lightning_vamo.core.directions.family import check_real
from lightning_vamo.core.sharding import shard_group
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError, shown
from lightning_vamo.loop import compat
from lightning_vamo.loop.parameters import trainable_parameters

# The reason why a strategy is not supported, by the name of the strategy or of one of its bases.
_REASONS = {
    "FSDPStrategy": "FSDP1 flattens parameters and their gradients, whose shapes are needed; FSDP2 keeps the shapes",
    "DeepSpeedStrategy": "DeepSpeed does not step with the gradients in `.grad`",
    "SingleDeviceXLAStrategy": "XLA is untested",
    "XLAStrategy": "XLA is untested",
}


def check_whole(name: str, value: object, otherwise: str = "") -> None:
    """Refuse a value that is not a whole number of at least 1.

    Args:
        name: Name of the argument, for the message.
        value: The value.
        otherwise: Other values that are allowed, for the message.

    Raises:
        InvalidArgumentError: If the value is not allowed.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidArgumentError(
            f"`{name}` must be a whole number >= 1{' ' if otherwise else ''}{otherwise}, got {shown(value)}."
        )


def check_common(seed: object, verbose: object) -> None:
    """Refuse values of the arguments that all callbacks have.

    Args:
        seed: The argument ``seed``.
        verbose: The argument ``verbose``.

    Raises:
        InvalidArgumentError: If a value is not allowed.
    """
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise InvalidArgumentError(f"`seed` must be a whole number or None, got {shown(seed)}.")
    if not isinstance(verbose, bool):
        raise InvalidArgumentError(f"`verbose` must be True or False, got {shown(verbose)}.")


def check_package(name: str, thing: object) -> None:
    """Refuse a class or object of the package ``pytorch_lightning``, whose classes are not those of ``lightning.pytorch``.

    Args:
        name: Name of the argument, for the message.
        thing: A class, or an object.

    Raises:
        UnsupportedError: If the class or object is built on ``pytorch_lightning``.
    """
    cls = thing if isinstance(thing, type) else type(thing)
    foreign = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == "pytorch_lightning"]
    if foreign and not issubclass(cls, (LightningModule, Trainer, LightningDataModule)):
        own = cls is foreign[0]
        raise UnsupportedError(
            f"`{name}` is {'' if own else cls.__name__ + ', which is built on '}pytorch_lightning.{foreign[0].__name__}, but"
            " lightning_vamo works with the package lightning, whose classes cannot be mixed with those of pytorch_lightning:"
            " write `import lightning.pytorch as pl` in place of `import pytorch_lightning as pl` in all of your files."
        )


def check_alone(callbacks: Sequence[Callback]) -> None:
    """Refuse a Trainer with several callbacks that take over the training steps.

    Args:
        callbacks: The callbacks of this kind.

    Raises:
        UnsupportedError: If there are several.
    """
    if len(callbacks) > 1:
        names = ", ".join(type(callback).__name__ for callback in callbacks)
        raise UnsupportedError(f"The Trainer has {len(callbacks)} callbacks that change gradients, {names}: keep one.")


def check_strategy(strategy: Strategy, name: str) -> None:
    """Refuse a strategy with which the gradient correction would be wrong or is untested.

    Args:
        strategy: The Trainer's strategy.
        name: Name of the callback, for messages.

    Raises:
        UnsupportedError: If the strategy is not a single device, DDP, or FSDP2 without tensor parallelism, or if its ranks
            share their weights' memory.
    """
    names = [cls.__name__ for cls in type(strategy).__mro__]
    reason = next((_REASONS[name] for name in names if name in _REASONS), None)
    if reason or not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)):
        raise UnsupportedError(
            f"{name} does not support {type(strategy).__name__}: {reason or 'it is untested'}. Use Trainer(strategy='ddp') for"
            " several devices, ModelParallelStrategy (FSDP2) for a model that does not fit on one device, or a single device."
        )
    ways = strategy.device_mesh["tensor_parallel"].size() if isinstance(strategy, ModelParallelStrategy) else 1
    if ways > 1:
        raise UnsupportedError(
            f"{name} does not support tensor parallelism, got tensor_parallel_size={ways}: use"
            " ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1) and shard the model with `fully_shard`."
        )
    if compat.shares_weights(strategy):
        raise UnsupportedError(
            f"{name} does not support DDPStrategy(start_method='forkserver') on a CPU, where the weights of all ranks lie in"
            " the same memory, so each rank writes to the others' weights: use start_method='popen', 'spawn' or 'fork'."
        )
    if strategy.root_device.type == "mps":
        raise UnsupportedError(
            f"{name} needs float64, which MPS does not have: use Trainer(accelerator='cpu') or a CUDA device."
        )


def check_module(module: LightningModule, mixin: type, callback: str) -> None:
    """Refuse a module whose training steps the callback cannot run.

    Args:
        module: The module to fit.
        mixin: The mixin that the module needs.
        callback: Name of the callback, for messages.

    Raises:
        UnsupportedError: If the module lacks the mixin, optimizes manually, or fetches its own batches.
    """
    name = type(module).__name__
    if not isinstance(module, mixin):
        raise UnsupportedError(
            f"The Trainer has a {callback}, but {name} lacks the VAMOMixin: define"
            f" `class VAMO{name}(VAMOMixin, {name}): pass` and fit this class, or fit `with_vamo(module)`."
        )
    if not module.automatic_optimization:
        raise UnsupportedError(
            f"{name} sets automatic_optimization=False and steps its optimizers itself, so {callback} has no gradient to"
            " correct: return the loss from `training_step` and leave automatic_optimization at True."
        )
    if type(module).automatic_optimization is not LightningModule.automatic_optimization:
        raise UnsupportedError(
            f"{name} overrides the property `automatic_optimization`, which {callback} has to set during each step: remove"
            " the override, since True is the default."
        )
    if compat.is_compiled(module):
        raise UnsupportedError(
            f"{name} was compiled as a whole, so {callback} cannot run its training step: compile its submodules instead, for"
            " example `self.net = torch.compile(self.net)`."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise UnsupportedError(
            f"{name}.training_step takes `dataloader_iter` and fetches its own batches, which {callback} does not see: write"
            " `training_step(self, batch, batch_idx)`."
        )


@contextmanager
def one_optimizer(strategy: Strategy, name: str) -> Iterator[None]:
    """Make a context that replaces Lightning's error for several optimizers, whose advice does not help here.

    Lightning advises manual optimization, which the package's callbacks refuse.

    Args:
        strategy: The Trainer's strategy.
        name: Name of the callback, for messages.
    """
    original = strategy.setup_optimizers

    def setup_optimizers(trainer: Trainer) -> None:
        try:
            original(trainer)
        except RuntimeError as error:
            if "multiple optimizers" not in str(error):
                raise
            raise UnsupportedError(
                f"`configure_optimizers` returned more than one optimizer, but {name} supports only one: put all parameters"
                " into the param_groups of a single optimizer."
            ) from error

    with compat.replaced(strategy, "setup_optimizers", setup_optimizers):
        yield


def check_optimizer(optimizers: Sequence[Any], name: str) -> None:
    """Refuse an optimizer that evaluates its closure several times per step, and a module without an optimizer.

    Args:
        optimizers: The Trainer's optimizers, of which Lightning allows one.
        name: Name of the callback, for messages.

    Raises:
        UnsupportedError: If the optimizer is LBFGS, or if there is none. Other optimizers with several evaluations are refused
            in their first step.
    """
    for optimizer in optimizers:
        if compat.has_no_optimizer(optimizer):
            raise UnsupportedError(
                f"`configure_optimizers` returned None, so there is no optimizer whose steps {name} could change: return an"
                " optimizer, for example `torch.optim.SGD(self.parameters(), lr=0.1)`."
            )
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UnsupportedError(
                f"LBFGS evaluates its closure several times per step, but {name} computes one gradient per step: use an"
                " optimizer that evaluates its closure once, such as SGD or AdamW."
            )


def check_loss(trainer: Trainer, module: LightningModule, loss: Tensor | None) -> None:
    """Refuse a loss that cannot be differentiated, before other ranks wait for this rank's gradients.

    Args:
        trainer: The trainer.
        module: Its module.
        loss: The loss that ``training_step`` returned; None if it returned None.

    Raises:
        UnsupportedError: If there is no loss on one of several ranks, or if the loss does not depend on a parameter.
    """
    if loss is None:
        check_none(trainer)
    elif not loss.requires_grad:
        raise UnsupportedError(
            f"The loss that `{type(module).__name__}.training_step` returned does not depend on any trainable"
            " parameter: return a loss that was not detached or turned into a number."
        )


def check_none(trainer: Trainer) -> None:
    """Refuse a batch without a loss on one of several ranks, before other ranks wait for this rank.

    Args:
        trainer: The trainer.

    Raises:
        UnsupportedError: If there are several ranks.
    """
    if trainer.world_size > 1:
        raise UnsupportedError(
            "`training_step` returned None on one of several ranks: Lightning cannot skip a batch in distributed"
            " training. Return a loss for every batch."
        )


def check_probes_fit(optimizers: Sequence[Any], directions: Directions, probes: int, alpha: Alpha) -> None:
    """Refuse more probes than the family can draw, and warn about a coefficient that adds more noise than it removes.

    Args:
        optimizers: The Trainer's optimizers, of which Lightning allows one.
        directions: The family of probe directions.
        probes: ``q``, at least 1.
        alpha: The mixing coefficient, or ``"theory"``.

    Raises:
        InvalidArgumentError: If an orthonormal family is to draw more directions than there are trainable parameters, or if
            directions are to be learned for parameters that are not real.
        UnsupportedError: If the parameters are sharded in a way that has no directions.
    """
    parameters = trainable_parameters(optimizers)
    if directions.learns:  # else they are drawn, and refused, in the first step
        check_real(parameters)
    shard_group(parameters)  # refuses parameters that are sharded, but not by `fully_shard`
    dimension = sum(parameter.numel() for parameter in parameters)
    directions.check_count(probes, dimension)
    beta = effective_coefficient(alpha, probes, dimension)
    # Twice the best coefficient adds as much noise as it removes. Independent directions overlap, so their best coefficient is
    # lower; learned directions are used in coordinates of an orthonormal basis.
    best = 1.0 if directions.orthonormal or directions.learns else dimension / (dimension + probes - 1)
    if beta > 2 * best:
        # A coefficient by name is too large only if many independent directions overlap in few dimensions.
        remedy = f"set `alpha` to about {best * probes / dimension:.3g}, or leave `alpha` out"
        if isinstance(alpha, str):
            remedy = f"use at most {dimension} probes"
        rank_zero_warn(
            f"`alpha={alpha!r}` adds more variance than it removes with {probes} {'probe' if probes == 1 else 'probes'} along"
            f" {type(directions).__name__} and {dimension} trainable parameters: {remedy}."
        )
