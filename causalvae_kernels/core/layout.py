"""Memory formats of (B, C, T, H, W) tensors: which one an op's output takes.

The rule is PyTorch's own for convolutions: one channels-last input makes the output channels last.
It looks at strides only, never at the backend, so that a fake kernel predicts what a real one returns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last_3d(x: Tensor) -> bool:
    """Tell whether PyTorch would suggest channels_last_3d: the strides grow from C over W, H, T to B.

    Holds for a dense channels_last_3d tensor and for a window into one (the body of a `FrameBuffer`).
    A tensor that is contiguous as well (one channel, or one pixel) counts as contiguous.
    """
    if x.dim() != 5 or x.is_contiguous() or x.stride(1) == 0:
        return False
    least = 0
    for dim in (1, 4, 3, 2, 0):
        stride = x.stride(dim)
        if stride < least or (dim == 0 and least == x.stride(1)):
            return False
        least = stride * x.shape[dim] if x.shape[dim] > 1 else stride
    return True


def memory_format_of(*tensors: Tensor | None) -> torch.memory_format:
    """Return channels_last_3d if any of the tensors is, else contiguous_format."""
    if any(t is not None and is_channels_last_3d(t) for t in tensors):
        return torch.channels_last_3d
    return torch.contiguous_format
