"""Choice of floating-point types."""

import torch


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The type to do arithmetic in for tensors of ``dtype``: float64 stays, anything narrower becomes float32."""
    return torch.promote_types(dtype, torch.float32)
