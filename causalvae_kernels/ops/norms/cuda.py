"""What the norms' backend `cuda` shares: when it can run, and the group norm's call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import native
from .cpu import address
from .kernels import DTYPES, why_not_kernel

# As csrc/common has them: channels, the pixels of a batch entry and the blocks of a launch are counted in 31
# bits. No block has fewer elements than 64 pixels of a channel, but for the last of them.
_LIMIT = 2**31
_PIXELS_OF_A_BLOCK = 64


def why_not_norm(x: Tensor, result: torch.dtype, precision: str) -> str | None:
    """Return why the kernels cannot normalise `x` into this dtype, or None."""
    return why_not_kernel(x, result, precision) or _why_not_counted(x) or native.why_no_cuda(x.device)


def _why_not_counted(x: Tensor) -> str | None:
    lines = x.shape[0] * x.shape[1]
    pixels = x.numel() // lines
    if pixels >= _LIMIT:
        return f"a batch entry has {pixels} pixels, the kernel takes fewer than {_LIMIT}"
    blocks = lines * -(-pixels // _PIXELS_OF_A_BLOCK)
    if blocks >= _LIMIT:
        return f"the norm takes up to {blocks} blocks, a launch has fewer than {_LIMIT}; split the batch"
    return None


def group_norm_into(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    repeats: Sequence[int] = (0, 1, 1, 1),
) -> None:
    """Write the group norm of `x` into `out`, which may be `x`.

    Args:
        out: Shape and dtype of `x`, any strides.
        x: Shape (B, C, T, H, W), any strides.
        weight: Shape (C,), in the dtype of `x` or in float32, or None.
        bias: Shape (C,), dtype of `weight`, or None.
        num_groups: A divisor of C.
        eps: Added to the variance.
        silu: Whether to apply SiLU.
        scale: Shape (B, C, t, h, w), or None.
        shift: Shape of `scale`, or None.
        repeats: Of scale and shift: lone first frame, frames, rows, columns, as `Repeats` has them.
    """
    module = native.cuda_module()
    dtype = DTYPES[x.dtype]
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    given = next((p for p in (weight, bias) if p is not None), x)
    floats = module.index.group_norm_workspace(native.describe(x), dtype)
    workspace = torch.empty(floats, dtype=torch.float32, device=x.device)
    lone, *times = repeats
    module.group_norm(
        native.describe(out),
        native.describe(x),
        None if scale is None else native.describe(scale),
        None if shift is None else native.describe(shift),
        address(weight),
        address(bias),
        DTYPES[given.dtype],
        num_groups,
        eps,
        silu,
        bool(lone),
        tuple(times),
        dtype,
        workspace.data_ptr(),
        floats,
        *native.current_stream(x.device),
    )
