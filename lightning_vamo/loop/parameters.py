"""The parameters that a method moves."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_vamo.errors import UnsupportedError


def trainable_parameters(optimizers: Sequence[Any]) -> list[Tensor]:
    """The parameters that VAMO probes and corrects: parameters of the optimizer that need a gradient.

    Args:
        optimizers: The Trainer's optimizers, of which Lightning allows one.

    Returns:
        The parameters, in the order of the optimizer's groups.

    Raises:
        UnsupportedError: If there are none, or some have no shape yet.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
    if any(is_lazy(parameter) for parameter in parameters):
        raise UnsupportedError(
            "The module has lazy parameters without a shape yet, so there is nothing to draw directions for: run one forward"
            " pass before `fit`."
        )
    if sum(parameter.numel() for parameter in parameters) == 0:
        raise UnsupportedError(
            "The optimizer has no trainable parameters: pass it parameters with requires_grad=True, for example"
            " `torch.optim.SGD(self.parameters(), lr=0.1)`."
        )
    return parameters


def same_tensors(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same objects."""
    return list(map(id, some)) == list(map(id, others))
