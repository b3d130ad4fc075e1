"""Choice of floating-point types."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type for arithmetic with tensors of ``dtype``: float64 stays, narrower types become float32."""
    return torch.promote_types(dtype, torch.float32)
