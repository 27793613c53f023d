"""The Triton kernel that adds bias and residual to an output in place. Import it at the first call only."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ...core.triton_launch import Launch
from ...core.triton_source import inlined, narrow, unspecialised, widen
from .epilogue import NUM_WARPS, plan


@inlined
def _tile(pointer, p, c, stride_p, stride_c, LAST: tl.constexpr, ALIGNED: tl.constexpr):
    """Return pointers to pixels p and channels c: (pixel, channel) if LAST, else (channel, pixel)."""
    along, across = (c, p) if LAST else (p, c)
    step, stride = (stride_c, stride_p) if LAST else (stride_p, stride_c)
    if ALIGNED:  # the innermost step is 1, and the compiler is told that rows begin at multiples of 16 bytes
        rows = tl.multiple_of(pointer + across * stride, 16)
    else:
        rows = pointer + across * stride
        along = along * step
    return rows[:, None] + along[None, :]


@unspecialised
def add_bias_and_residual(
    out_ptr,
    bias_ptr,
    add_ptr,
    channels: tl.int32,
    pixels: tl.int32,
    size_1: tl.int32,
    size_2: tl.int32,
    size_3: tl.int32,
    y_c: tl.int64,
    y_0: tl.int64,
    y_1: tl.int64,
    y_2: tl.int64,
    y_3: tl.int64,
    add_c: tl.int64,
    add_0: tl.int64,
    add_1: tl.int64,
    add_2: tl.int64,
    add_3: tl.int64,
    c_tiles: tl.int32,
    p_tiles: tl.int32,
    LAST: tl.constexpr,
    Y_ALIGNED: tl.constexpr,
    ADD_ALIGNED: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Over a tile of channels by pixels of the innermost axis, out = (out + bias[c]) + add; see `plan`."""
    number = tl.program_id(0)
    c = (number % c_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    number = number // c_tiles
    p = (number % p_tiles) * BLOCK_P + tl.arange(0, BLOCK_P)
    number = number // p_tiles
    i1 = (number % size_1).to(tl.int64)
    number = number // size_1
    i2 = (number % size_2).to(tl.int64)
    i3 = (number // size_2).to(tl.int64)
    y = _tile(out_ptr + (i1 * y_1 + i2 * y_2 + i3 * y_3), p, c, y_0, y_c, LAST, Y_ALIGNED)
    add = _tile(add_ptr + (i1 * add_1 + i2 * add_2 + i3 * add_3), p, c, add_0, add_c, LAST, ADD_ALIGNED)

    VECTOR: tl.constexpr = 128 // out_ptr.dtype.element_ty.primitive_bitwidth
    if Y_ALIGNED or ADD_ALIGNED:  # the same number, now known to be a multiple
        if LAST:
            channels = channels // VECTOR * VECTOR
        else:
            pixels = pixels // VECTOR * VECTOR
    bias = widen(tl.load(bias_ptr + c, mask=c < channels, other=0.0))
    if LAST:
        inside = (p < pixels)[:, None] & (c < channels)[None, :]
        bias = bias[None, :]
    else:
        inside = (c < channels)[:, None] & (p < pixels)[None, :]
        bias = bias[:, None]
    sums = widen(tl.load(y, mask=inside, other=0.0)) + bias + widen(tl.load(add, mask=inside, other=0.0))
    tl.store(y, narrow(sums, out_ptr.dtype.element_ty), mask=inside)


def launch(y: Tensor, bias: Tensor, residual: Tensor) -> Launch:
    """Return the launch that adds bias and residual to `y`, all of one dtype."""
    programs, arguments = plan(y, residual)
    tensors = {"out_ptr": y, "bias_ptr": bias.contiguous(), "add_ptr": residual}
    return Launch(add_bias_and_residual, programs, tensors | arguments, NUM_WARPS)
