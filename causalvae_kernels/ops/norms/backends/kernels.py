"""What kernels of ours say of a norm, whatever device they run on."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core.precision import why_not_exact

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not_kernel(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why no kernel of ours normalises `x` into this dtype in this tier, or None."""
    if x.dtype not in DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    if result != x.dtype:
        return f"x is {x.dtype} and the result {result}, and the kernel writes the dtype that it reads"
    return why_not_exact(precision, "norm")
