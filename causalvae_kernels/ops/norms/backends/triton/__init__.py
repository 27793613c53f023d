"""What the norms' backend `triton` shares: when it can run."""

from __future__ import annotations

import torch
from torch import Tensor

from .....core.pixel_walk import LIMIT
from .....core.triton_runtime import why_no_triton
from ..kernels import why_not_kernel


def why_not_norm(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why the kernels cannot normalise `x` into this dtype, or None."""
    reason = why_not_kernel(x, result, precision) or why_no_triton(x.device)
    # Every program has an element of its own, so that so few cannot ask for too many programs.
    if reason is not None or x.numel() <= LIMIT:
        return reason
    lines = x.numel() // x.shape[4] * -(-x.shape[4] // 8)
    if lines > LIMIT:
        return f"the norm may take {lines} steps, the kernel counts to {LIMIT}; split the batch"
    return None
