"""The parameters that a method moves or corrects."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_vamo.errors import UnsupportedError


def trainable_parameters(optimizers: Sequence[Any]) -> list[Tensor]:
    """The parameters that a method moves or corrects: parameters of the optimizer that need a gradient.

    Args:
        optimizers: The Trainer's optimizers, of which Lightning allows one.

    Returns:
        The parameters, in the order of the optimizer's groups.

    Raises:
        UnsupportedError: If there are no such parameters, or if a parameter has no shape yet.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    if any(is_lazy(parameter) for parameter in parameters):
        raise UnsupportedError(
            "The module has lazy parameters, whose shapes are not known yet: run one forward pass of the module before `fit`."
        )
    if sum(parameter.numel() for parameter in parameters) == 0:
        raise UnsupportedError(
            "The optimizer has no trainable parameters: give the optimizer parameters with requires_grad=True, for example"
            " `torch.optim.SGD(self.parameters(), lr=0.1)`."
        )
    return parameters


def same_tensors(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same objects."""
    return list(map(id, some)) == list(map(id, others))
