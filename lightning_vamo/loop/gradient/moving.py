"""Which parameters a method without backpropagation moves, and at which learning rates."""

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vamo.core.gradient.moved import check_movable
from lightning_vamo.core.gradient.update import Rate
from lightning_vamo.errors import InvalidArgumentError, UnsupportedError, shown
from lightning_vamo.loop.parameters import same_tensors, trainable_parameters

Chosen = str | Sequence[str] | Callable[[str, Tensor], bool] | None
"""Which parameters move: a pattern of names, several patterns, or a function of a name and a parameter; None for all."""


def _takes_two(function: Callable[..., Any]) -> bool:
    """Whether a function can be called with two arguments, as far as its signature is known."""
    try:
        inspect.signature(function).bind("", None)
    except TypeError:
        return False
    except ValueError:  # some built-in functions have no signature
        return True
    return True


def check_chosen(chosen: object) -> None:
    """Refuse an argument that does not choose parameters.

    Args:
        chosen: The choice.

    Raises:
        InvalidArgumentError: If the choice is not allowed.
    """
    patterns = [chosen] if isinstance(chosen, str) else chosen
    named = isinstance(patterns, (list, tuple)) and len(patterns) > 0 and all(isinstance(one, str) for one in patterns)
    if not (chosen is None or named or (callable(chosen) and _takes_two(chosen))):
        raise InvalidArgumentError(
            "`parameters` must be a pattern of names such as '*.bias', a list of patterns, a function of two"
            f" arguments, a name and a parameter, or None for all, got {shown(chosen)}."
        )


class Moving:
    """The parameters that move: the chosen parameters that need a gradient and that the optimizer has.

    Args:
        chosen: Patterns of names as in a shell, such as ``"*.bias"``; or a function that gets a name and the parameter; None
            for all. A parameter with several names in the module is chosen if one of its names is chosen.
    """

    def __init__(self, chosen: Chosen = None) -> None:
        self._chosen = chosen
        self._among: list[Tensor] = []
        self._found: list[Tensor] = []

    def parameters(self, trainer: Trainer, module: LightningModule) -> list[Tensor]:
        """The parameters, in the order of the optimizer's groups.

        Args:
            trainer: The trainer.
            module: Its module. FSDP2 must have freed the parameters that it gathered for a forward pass.

        Returns:
            The parameters.

        Raises:
            InvalidArgumentError: If no parameter is chosen, or if a pattern matches no name.
            UnsupportedError: If the optimizer has no parameters that need a gradient.
        """
        trainable = trainable_parameters(trainer.optimizers)
        if self._chosen is None:
            return trainable
        if not same_tensors(trainable, self._among):
            self._among, self._found = trainable, self._choose(trainable, module)
        return self._found

    def _choose(self, trainable: Sequence[Tensor], module: LightningModule) -> list[Tensor]:
        names: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)
        found = [p for p in trainable if any(self._is_chosen(name, p) for name in names.get(id(p), ()))]
        some = ", ".join(map(repr, [name for p in trainable for name in names.get(id(p), ())][:5]))
        if not found:
            raise InvalidArgumentError(
                f"`parameters={shown(self._chosen)}` chooses none of the module's trainable parameters, which have names such"
                f" as {some}: choose some of these names, or leave `parameters` out."
            )
        every = [name for each in names.values() for name in each]
        # A pattern may choose parameters that train later.
        vain = [pattern for pattern in self._patterns if not any(fnmatch.fnmatchcase(name, pattern) for name in every)]
        if vain:
            raise InvalidArgumentError(
                f"`parameters={self._chosen!r}` has a pattern that matches no name of a parameter, {vain[0]!r}; names are, say,"
                f" {some}: correct the pattern, or leave the pattern out."
            )
        return found

    @property
    def _patterns(self) -> Sequence[str]:
        if callable(self._chosen):
            return ()
        return [self._chosen] if isinstance(self._chosen, str) else self._chosen or ()

    def _is_chosen(self, name: str, parameter: Tensor) -> bool:
        if callable(self._chosen):
            return bool(self._chosen(name, parameter))
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self._patterns)


def check_parameters(parameters: Sequence[Tensor], name: str) -> None:
    """Refuse parameters that cannot be moved in place and brought back.

    Args:
        parameters: The parameters.
        name: Name of the callback, for messages.

    Raises:
        InvalidArgumentError: If a parameter has a type that cannot be moved.
        UnsupportedError: If a parameter is on the meta device, without numbers.
    """
    for parameter in parameters:
        check_movable(parameter.dtype)
        if parameter.device.type == "meta":
            raise UnsupportedError(
                f"A parameter is on the meta device, without numbers that {name} could move: hooks such as accelerate's"
                " `cpu_offload` keep the numbers elsewhere. Load the weights, or shard the module with FSDP2, whose"
                " CPUOffloadPolicy keeps weights in host memory."
            )


def groups_of(optimizers: Sequence[Any], parameters: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The optimizer group of each parameter.

    Args:
        optimizers: The Trainer's optimizers, of which Lightning allows one.
        parameters: The parameters.

    Returns:
        The group of each parameter.
    """
    groups = {
        id(parameter): group for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    return [groups[id(parameter)] for parameter in parameters]


def rates(optimizers: Sequence[Any], parameters: Sequence[Tensor]) -> list[Rate]:
    """Learning rates and weight decays of parameters, from their groups' present settings."""
    groups = groups_of(optimizers, parameters)
    return [Rate(float(group["lr"]), float(group.get("weight_decay", 0.0))) for group in groups]


def is_plain_sgd(optimizer: Any) -> bool:
    """Whether an optimizer is plain SGD: without momentum, and without maximisation."""
    if type(optimizer) is not torch.optim.SGD:
        return False
    return not any(_extras(group) for group in optimizer.param_groups)


def _extras(group: dict[str, Any]) -> list[str]:
    """The settings by which a step of SGD is more than a step against the gradient."""
    return [f"{name}={group[name]}" for name in ("momentum", "maximize") if group.get(name)]


def described(optimizer: Any) -> str:
    """An optimizer that is not plain SGD, for a message: its class, and the settings of SGD that are to blame."""
    name = type(optimizer).__name__
    extras = [extra for group in optimizer.param_groups for extra in _extras(group)]
    return f"{name}({', '.join(dict.fromkeys(extras))})" if type(optimizer) is torch.optim.SGD else name
