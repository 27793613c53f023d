"""Causal convolution by the native CPU module: reads input and state as two sources, copies neither.

A plain direct kernel that proves the native path; it is not measured to be faster than the framework's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import native
from ...core.layout import memory_format_of
from ...core.op import Backend
from .spec import output_size, paddings

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def _why_not(x: Tensor, *others: object) -> str | None:
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    if x.dtype not in _DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    if others[-1] == "exact":
        return (
            "precision 'exact' asks for the bits of the framework's convolution, and the kernel sums in "
            "another order"
        )
    return native.why_no_cpu()


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    dilation: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    kernel_size = weight.shape[2:]
    size = output_size(x.shape, kernel_size, stride, dilation, temporal_mode, spatial_mode)
    pad = paddings(kernel_size, dilation, temporal_mode, spatial_mode)
    out = torch.empty(
        (x.shape[0], weight.shape[0], *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, weight),
    )
    bias = None if bias is None else bias.contiguous()
    native.cpu_module().causal_conv3d(
        native.describe(out),
        native.describe(x),
        native.describe(weight),
        None if bias is None else bias.data_ptr(),
        None if initial_state is None else native.describe(initial_state),
        None if residual is None else native.describe(residual),
        tuple(stride),
        tuple(dilation),
        (pad.explicit[0] + pad.implicit[0], pad.explicit[2] + pad.implicit[1]),
        temporal_mode,
        spatial_mode,
        _DTYPES[x.dtype],
        native.cpu_isa(),
        torch.get_num_threads(),
    )
    return out


CONV = Backend("cpu", _convolve, _why_not)
