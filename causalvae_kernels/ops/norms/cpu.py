"""What the norms' backend `cpu` shares: when it can run, and its parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import memory, native
from ...core.layout import memory_format_of

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not_norm(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why the kernels cannot normalise `x` into this dtype, or None."""
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    if x.dtype not in DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    if result != x.dtype:
        return f"x is {x.dtype} and the result {result}, and the kernel writes the dtype that it reads"
    if precision == "exact":
        return (
            "precision 'exact' asks for the bits of the framework's norm, and the kernel sums in another "
            "order and rounds less often"
        )
    return native.why_no_cpu()


def empty_like_format(x: Tensor) -> Tensor:
    """Return memory for the result: channels_last_3d if `x` is, else contiguous."""
    return memory.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def as_floats(parameter: Tensor | None) -> Tensor | None:
    """Return a parameter as the kernels read it, in float32; keep it while its address is in use."""
    return None if parameter is None else parameter.detach().float().contiguous()


def address(parameter: Tensor | None) -> int | None:
    """Return where it lies."""
    return None if parameter is None else parameter.data_ptr()
