"""The Triton kernel of the RMS norm. Import it at the first call only."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .....core.pixel_walk import NEITHER, PixelWalk, power_of_two
from .....core.triton_launch import Launch
from .....core.triton_source import narrow, offset_of, place_of_tile, tile_of, unspecialised, widen
from ....norms.backends.triton.kernels import silu_of
from ...spec import EPS

NUM_WARPS = 4
# Up to so many channels stay in registers; more are read twice, the second time from a cache.
_MOST_CHANNELS = 1024
_BLOCK = 256


@unspecialised
def rms_normalise(
    out_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    root: tl.float32,
    added: tl.float32,
    least: tl.float32,
    channels: tl.int32,
    pixels: tl.int32,
    size_1: tl.int32,
    size_2: tl.int32,
    x_c: tl.int64,
    x_0: tl.int64,
    x_1: tl.int64,
    x_2: tl.int64,
    x_3: tl.int64,
    out_c: tl.int64,
    out_0: tl.int64,
    out_1: tl.int64,
    out_2: tl.int64,
    out_3: tl.int64,
    p_tiles: tl.int32,
    SILU: tl.constexpr,
    WHOLE: tl.constexpr,
    X_INNER: tl.constexpr,
    OUT_INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """For each pixel, n = x / max(sqrt(|x|^2 + added), least), rounded.

    out = silu(n * root * weight[c] + bias[c]). WHOLE: one block holds all channels, and x is read once.
    """
    _, p_tile, i1, i2, i3 = place_of_tile(tl.program_id(0), 1, p_tiles, size_1, size_2)
    p = p_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    lane = tl.arange(0, BLOCK_C)
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    if X_INNER == "channels" or OUT_INNER == "channels":  # the same number, now known to be a multiple
        channels = channels // VECTOR * VECTOR
    if X_INNER == "pixels" or OUT_INNER == "pixels":
        pixels = pixels // VECTOR * VECTOR
    known = (p < pixels)[:, None]
    from_ = x_ptr + offset_of(i1, i2, i3, x_1, x_2, x_3)
    to = out_ptr + offset_of(i1, i2, i3, out_1, out_2, out_3)
    if WHOLE:
        inside = known & (lane < channels)[None, :]
        x = widen(tl.load(tile_of(from_, p, lane, x_0, x_c, X_INNER), mask=inside, other=0.0))
        squares = tl.sum(x * x, axis=1)
    else:
        sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for start in range(0, channels, BLOCK_C):
            c = start + lane
            inside = known & (c < channels)[None, :]
            x = widen(tl.load(tile_of(from_, p, c, x_0, x_c, X_INNER), mask=inside, other=0.0))
            sums += x * x
        squares = tl.sum(sums, axis=1)
    norm = tl.sqrt_rn(squares + added)
    # A NaN is no norm below the least one.
    norm = tl.where(norm < least, least, norm)[:, None]
    inverse = 1.0 / norm
    for start in range(0, channels, BLOCK_C):
        c = start + lane
        inside = known & (c < channels)[None, :]
        if not WHOLE:
            x = widen(tl.load(tile_of(from_, p, c, x_0, x_c, X_INNER), mask=inside, other=0.0))
        if x_ptr.dtype.element_ty == tl.float32:
            y = tl.div_rn(x, tl.broadcast_to(norm, x.shape))
        else:  # what the inverse loses is far below the digits that are kept
            y = widen(narrow(x * inverse, x_ptr.dtype.element_ty))
        y *= root
        y *= widen(tl.load(weight_ptr + c, mask=c < channels, other=0.0))[None, :]
        if bias_ptr is not None:
            y += widen(tl.load(bias_ptr + c, mask=c < channels, other=0.0))[None, :]
        if SILU:
            y = silu_of(y)
        at = tile_of(to, p, c, out_0, out_c, OUT_INNER)
        tl.store(at, narrow(y, out_ptr.dtype.element_ty), mask=inside)


def launch(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, silu: bool) -> Launch:
    """Return the launch that writes the RMS norm of `x` into `out`, which may be `x`.

    Args:
        out: Shape and dtype of `x`, any strides.
        x: Shape (B, C, T, H, W), any strides.
        weight: Shape (C,).
        bias: Shape (C,), or None.
        eps: Added to the mean of the squares.
        silu: Whether to apply SiLU.
    """
    walk = PixelWalk.of(x, out)
    channels = walk.channels
    block_c = power_of_two(channels) if channels <= _MOST_CHANNELS else _BLOCK
    # Four 16-byte accesses a thread, or 8 elements.
    items = NUM_WARPS * 32 * 64 // x.element_size()
    if NEITHER in (walk.inner(0), walk.inner(1)):
        items //= 4
    block_p = max(items // block_c, 1)
    arguments = walk.numbers() | walk.steps(0, "x") | walk.steps(1, "out")
    del arguments["size_3"]
    arguments |= {
        "out_ptr": out,
        "x_ptr": x,
        "weight_ptr": weight.contiguous(),
        "bias_ptr": None if bias is None else bias.contiguous(),
        "root": channels**0.5,
        "added": channels * eps,
        "least": EPS,
        "p_tiles": -(-walk.sizes[0] // block_p),
        "SILU": silu,
        "WHOLE": channels <= block_c,
        "X_INNER": walk.inner(0),
        "OUT_INNER": walk.inner(1),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    # One block of channels: the loop takes the others.
    return Launch(rms_normalise, walk.programs(power_of_two(channels), block_p), arguments, NUM_WARPS)
