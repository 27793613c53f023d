"""What the norms' backend `cpu` shares: when it can run, and its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core import native
from .kernels import DTYPES, why_not_kernel

__all__ = ["DTYPES", "address", "as_floats", "why_not_norm"]


def why_not_norm(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why the kernels cannot normalise `x` into this dtype, or None."""
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    return why_not_kernel(x, result, precision) or native.why_no_cpu()


def as_floats(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter as the kernels read it, in float32; keep it while its address is in use."""
    return None if parameter is None else parameter.detach().float().contiguous()


def address(parameter: Tensor | None) -> int | None:
    """Return where it lies."""
    return None if parameter is None else native.address(parameter)
