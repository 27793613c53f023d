"""Causal convolution by the native CPU module: reads input and state as two sources, copies neither.

Winograd's algorithm where it does less than half of the multiplications, else the direct one; float32 inside,
whatever the dtype. docs/winograd.md tells how it is done and what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import memory, native
from ...core.layout import memory_format_of
from ...core.op import Backend, always
from ...core.packed import find_packed
from ...core.precision import why_not_exact
from ...core.traffic import into
from .spec import output_size, paddings, takes_winograd
from .traffic import moves

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def why_not(x: Tensor, *others: Any) -> str | None:
    """Return why our convolutions on a CPU cannot take a call whose arguments these are, or None."""
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    if x.dtype not in DTYPES:
        return f"the kernel knows float32, bfloat16 and float16, not {x.dtype}"
    return why_not_exact(others[-1], "convolution") or native.why_no_cpu()


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
    size = output_size(x.shape, weight.shape[2:], stride, dilation, temporal_mode, spatial_mode)
    out = memory.empty(
        (x.shape[0], weight.shape[0], *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, weight),
    )
    _convolve_into(
        *(out, x, weight, bias, initial_state, residual),
        *(stride, dilation, temporal_mode, spatial_mode, precision),
    )
    return out


def _convolve_into(
    out: Tensor,
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
) -> None:
    pad = paddings(weight.shape[2:], dilation, temporal_mode, spatial_mode)
    bias = None if bias is None else bias.contiguous()
    isa, threads = native.cpu_isa(), torch.get_num_threads()
    packed = None
    if takes_winograd(weight.shape, stride, dilation, out.shape[2:]):
        packed = _packed(weight, out.numel() // out.shape[1], isa, threads)
    native.cpu_module().causal_conv3d(
        native.describe(out),
        native.describe(x),
        native.describe(weight),
        None if bias is None else native.address(bias),
        None if initial_state is None else native.describe(initial_state),
        None if residual is None else native.describe(residual),
        tuple(stride),
        tuple(dilation),
        pad.sides,
        temporal_mode,
        spatial_mode,
        DTYPES[x.dtype],
        isa,
        threads,
        None if packed is None else native.address(packed),
    )


# Transforming the weights on every call pays from so many output pixels on: it writes 576 bytes per pair of
# channels, at 3 GB/s, and saves three quarters of 54 operations per pair and pixel, at 200 GFLOP/s.
_MANY_PIXELS = 2**12


def _packed(weight: Tensor, pixels: int, isa: str, threads: int) -> Tensor | None:
    """Return the transformed weights, or None where they are not kept and not worth it for one call."""
    kind, size = packing(weight, isa)

    def pack() -> Tensor:
        packed = memory.empty((size // 4,))
        native.cpu_module().winograd_pack(
            native.address(packed), native.describe(weight), DTYPES[weight.dtype], isa, threads
        )
        return packed

    packed = find_packed(weight, kind, size, pixels, pack)
    return pack() if packed is None and pixels >= _MANY_PIXELS else packed


def packing(weight: Tensor, isa: str) -> tuple[object, int]:
    """Return what decides how Winograd's weights are packed, and how many bytes they take."""
    return ("winograd", isa), 4 * native.cpu_module().winograd_packed_floats(native.describe(weight), isa)


def _why_not_into(out: Tensor, *arguments: object) -> str | None:
    return why_not(*arguments)


CONV = Backend("cpu", _convolve, why_not, two_sources=always, adds_in_place=True, moves=moves)
CONV_ = Backend("cpu", _convolve_into, _why_not_into, two_sources=always, moves=into(moves))
