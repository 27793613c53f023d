"""Winograd's algorithm over time in Triton: F(2, 3), two output frames for four products instead of six.

From four source frames d0..d3 and the transformed weights G0..G3, per row and column of the kernel,

    m0 = (d0 - d2) G0    m1 = (d1 + d2) G1    m2 = (d2 - d1) G2    m3 = (d1 - d3) G3
    first frame = m0 + m1 + m2        second frame = m1 - m2 - m3
    G0 = g0    G1 = (g0 + g1 + g2) / 2    G2 = (g0 - g1 + g2) / 2    G3 = g2

Sums and differences are taken in float32 and rounded to float16: a sum of two bfloat16 numbers of like size
fits in its eleven bits, and sums of products stay in float32. Where float16 fails, the kernel notices on the
device and raises a flag; the direct kernel, launched behind it over the same frames, computes them if that is
up.
"""

from __future__ import annotations

import torch
import triton.language as tl

from ...core.triton_launch import Launch
from ...core.triton_source import inlined, unspecialised, widen
from .triton_call import Call, packed, shared_arguments
from .triton_kernels import direct
from .triton_source import finish, place_of, read_pixels
from .triton_tiles import Tile

# The weights of an output channel are scaled to a norm of 1 to 2, so the largest |m0| + .. + |m3| of a tile
# is about as large as its differences. What float16 loses of these below its smallest step, 2**-24 at most,
# is from 2**-12 on a 2**-12th of the largest: an eighth of what bfloat16 rounds off it. A tile of zeros
# counts as one that float16 lost, and so does one with an infinity or a NaN.
_LEAST = tl.constexpr(2.0**-12)
_INFINITY = tl.constexpr(float("inf"))


@unspecialised
def transform_weights(
    w_ptr,
    out_ptr,
    scale_ptr,
    channels: tl.int32,
    w_n: tl.int64,
    w_c: tl.int64,
    w_t: tl.int64,
    w_h: tl.int64,
    w_w: tl.int64,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """G0..G3 of one output channel, scaled by a power of two, as (4, Cout, taps, Cin); scale[n] undoes it."""
    n = tl.program_id(0).to(tl.int64)
    count = channels * (KH * KW)
    lane = tl.arange(0, BLOCK)
    w_ptr += n * w_n
    squares = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        j = first + lane
        tap = j // channels
        at = w_ptr + (j % channels) * w_c + (tap // KW) * w_h + (tap % KW) * w_w
        g0 = widen(tl.load(at, mask=j < count, other=0.0))
        g1 = widen(tl.load(at + w_t, mask=j < count, other=0.0))
        g2 = widen(tl.load(at + 2 * w_t, mask=j < count, other=0.0))
        squares += g0 * g0 + g1 * g1 + g2 * g2
    # The exponent of the norm; where that is 0, subnormal, infinite or NaN, nothing is scaled.
    exponent = (tl.sqrt(tl.sum(squares)).to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.where((exponent > 0) & (exponent < 254), exponent, 127)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    tl.store(scale_ptr + n, (exponent << 23).to(tl.float32, bitcast=True))
    step = tl.num_programs(0).to(tl.int64) * count
    for first in range(0, count, BLOCK):
        j = first + lane
        tap = j // channels
        at = w_ptr + (j % channels) * w_c + (tap // KW) * w_h + (tap % KW) * w_w
        g0 = down * widen(tl.load(at, mask=j < count, other=0.0))
        g1 = down * widen(tl.load(at + w_t, mask=j < count, other=0.0))
        g2 = down * widen(tl.load(at + 2 * w_t, mask=j < count, other=0.0))
        to = out_ptr + n * count + j
        tl.store(to, g0.to(tl.float16), mask=j < count)
        tl.store(to + step, (0.5 * (g0 + g1 + g2)).to(tl.float16), mask=j < count)
        tl.store(to + 2 * step, (0.5 * (g0 - g1 + g2)).to(tl.float16), mask=j < count)
        tl.store(to + 3 * step, g2.to(tl.float16), mask=j < count)


@inlined
def differences(d0, d1, d2, d3):
    """Return the four transformed frames, rounded to float16 once.

    The compiler turns bfloat16 into float16 first and adds two numbers at a time (HADD2). The result is the
    same, since float32 has more than twice the digits of float16; below float16's smallest step it is two
    roundings, and two numbers beyond its range may give NaN for a difference within it, which the guard sees.
    """
    d0, d1, d2, d3 = widen(d0), widen(d1), widen(d2), widen(d3)
    return (
        (d0 - d2).to(tl.float16),
        (d1 + d2).to(tl.float16),
        (d2 - d1).to(tl.float16),
        (d1 - d3).to(tl.float16),
    )


@unspecialised
def conv_winograd(
    x_ptr,
    past_ptr,
    w,
    scale_ptr,
    bias_ptr,
    add_ptr,
    out_ptr,
    flag_ptr,
    channels: tl.int32,
    out_channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    causal: tl.int32,
    top: tl.int32,
    left: tl.int32,
    pairs: tl.int32,
    out_height: tl.int32,
    out_width: tl.int32,
    x_b: tl.int64,
    x_t: tl.int64,
    x_h: tl.int64,
    x_w: tl.int64,
    past_b: tl.int64,
    past_t: tl.int64,
    out_b: tl.int64,
    out_c: tl.int64,
    out_t: tl.int64,
    out_h: tl.int64,
    out_w: tl.int64,
    add_b: tl.int64,
    add_c: tl.int64,
    add_t: tl.int64,
    add_h: tl.int64,
    add_w: tl.int64,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ZERO_PAST: tl.constexpr,
    SPATIAL: tl.constexpr,
    WIDE: tl.constexpr,
    OUT_LAST: tl.constexpr,
    OUT_WINDOW: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    ADD_LIKE_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Two output frames of a convolution of kT = 3, stride and dilation 1; the flag goes up if float16 fails.

    `w` and `scale_ptr` come from `transform_weights`. Everything is aligned, and the frames before the input
    have its strides within a frame. See `conv_direct` for the rest.
    """
    tiles_m = tl.cdiv(out_height * out_width, BLOCK_M)
    tiles_n = tl.cdiv(out_channels, BLOCK_N)
    batch, pair, tile_m, tile_n = place_of(tl.program_id(0), pairs, tiles_m, tiles_n, GROUP)

    # The last tile's rows beyond the frame compute its last pixel again, and are not stored.
    pixel = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), out_height * out_width - 1)
    row = pixel // out_width - top
    column = pixel % out_width - left
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_K)
    steps_k = tl.cdiv(channels, BLOCK_K)
    limit = channels // 8 * 8  # the same number, now known to be a multiple
    if not WIDE:
        x_h, x_w = x_h.to(tl.int32), x_w.to(tl.int32)

    time = 2 * pair - causal
    x_ptr += batch.to(tl.int64) * x_b
    frame0 = x_ptr + tl.maximum(time, 0) * x_t
    frame1 = x_ptr + tl.maximum(time + 1, 0) * x_t
    frame2 = x_ptr + (time + 2) * x_t
    frame3 = x_ptr + (time + 3) * x_t
    if past_ptr is not None:
        past_ptr += batch.to(tl.int64) * past_b + (time + causal) * past_t
        frame0 = tl.where(time < 0, past_ptr, frame0)
        frame1 = tl.where(time + 1 < 0, past_ptr + past_t, frame1)
    rows_w = w + (n.to(tl.int64) * (KH * KW * limit))[None, :]
    step_w = out_channels.to(tl.int64) * (KH * KW * limit)
    in_rows = (n < out_channels)[None, :]
    frame0, frame1 = tl.multiple_of(frame0, 16), tl.multiple_of(frame1, 16)
    frame2, frame3 = tl.multiple_of(frame2, 16), tl.multiple_of(frame3, 16)
    rows_w = tl.multiple_of(rows_w, [16, 16])

    tap = 0
    block = 0
    m0 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    m1 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    m2 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    m3 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(KH * KW * steps_k):
        k = block * BLOCK_K + channel
        known = k < limit
        offset, seen = read_pixels(
            row + tap // KW, column + tap % KW, height, width, x_h, x_w, known, SPATIAL, 8
        )
        cell = offset[:, None] + k[None, :]
        seen0 = seen
        seen1 = seen
        if ZERO_PAST:
            seen0 = seen & (k < tl.where(time >= 0, limit, 0))[None, :]
            seen1 = seen & (k < tl.where(time + 1 >= 0, limit, 0))[None, :]
        e0, e1, e2, e3 = differences(
            tl.load(frame0 + cell, mask=seen0, other=0.0),
            tl.load(frame1 + cell, mask=seen1, other=0.0),
            tl.load(frame2 + cell, mask=seen, other=0.0),
            tl.load(frame3 + cell, mask=seen, other=0.0),
        )
        cell_w = rows_w + (tap * limit + k)[:, None]
        seen_w = known[:, None] & in_rows
        m0 = tl.dot(e0, tl.load(cell_w, mask=seen_w, other=0.0), m0)
        m1 = tl.dot(e1, tl.load(cell_w + step_w, mask=seen_w, other=0.0), m1)
        m2 = tl.dot(e2, tl.load(cell_w + 2 * step_w, mask=seen_w, other=0.0), m2)
        m3 = tl.dot(e3, tl.load(cell_w + 3 * step_w, mask=seen_w, other=0.0), m3)
        block += 1
        tap = tl.where(block == steps_k, tap + 1, tap)
        block = tl.where(block == steps_k, 0, block)

    size = tl.abs(m0) + tl.abs(m1) + tl.abs(m2) + tl.abs(m3)
    # An infinity among the differences makes every sum that it enters infinite or NaN; NaN compares false.
    largest = tl.max(tl.where(size < _INFINITY, size, _INFINITY))
    if (largest < _LEAST) | (largest == _INFINITY):
        tl.store(flag_ptr, 1)

    scale = tl.load(scale_ptr + n, mask=n < out_channels, other=0.0)[None, :]
    first, second = (m0 + m1 + m2) * scale, (m1 - m2 - m3) * scale
    ptrs = (bias_ptr, add_ptr, out_ptr)
    size = (out_channels, out_height, out_width)
    out = (out_b, out_c, out_t, out_h, out_w)
    add = (add_b, add_c, add_t, add_h, add_w)
    place = (batch, 2 * pair, tile_m, tile_n)
    finish(
        first, ptrs, place, size, out, add, OUT_LAST, OUT_WINDOW, OUT_ALIGNED, ADD_LIKE_OUT, BLOCK_M, BLOCK_N
    )
    place = (batch, 2 * pair + 1, tile_m, tile_n)
    finish(
        second, ptrs, place, size, out, add, OUT_LAST, OUT_WINDOW, OUT_ALIGNED, ADD_LIKE_OUT, BLOCK_M, BLOCK_N
    )


def winograd(call: Call, tile: Tile, rest: Tile) -> list[Launch]:
    """Return the launches that compute a call for which `why_no_winograd` has no objection.

    Args:
        call: The convolution.
        tile: How pairs of frames are cut.
        rest: How the direct kernel cuts the odd frame, and everything if the flag is up.
    """
    batch, out_channels, out_frames, out_height, out_width = call.out.shape
    in_channels, (_, kh, kw) = call.weight.shape[1], call.weight.shape[2:]
    pairs = out_frames // 2
    device = call.x.device
    flag = torch.zeros(1, dtype=torch.int32, device=device)
    scale = torch.empty(out_channels, dtype=torch.float32, device=device)
    transformed = torch.empty((4, out_channels, kh, kw, in_channels), dtype=torch.float16, device=device)
    weight = packed(call.weight)
    strides = {f"w_{axis}": call.weight.stride(d) for d, axis in enumerate("ncthw")}
    transform = {"w_ptr": call.weight, "out_ptr": transformed, "scale_ptr": scale, "channels": in_channels}
    arguments = shared_arguments(call)
    for name in ("ALIGNED", "x_c", "past_c", "past_h", "past_w"):
        del arguments[name]
    arguments |= {
        "w": transformed,
        "scale_ptr": scale,
        "flag_ptr": flag,
        "pairs": pairs,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP": tile.group,
    }
    tiles = -(-out_height * out_width // tile.block_m) * -(-out_channels // tile.block_n)
    found = [
        Launch(transform_weights, out_channels, transform | strides | {"KH": kh, "KW": kw, "BLOCK": 1024}),
        Launch(conv_winograd, batch * pairs * tiles, arguments, tile.num_warps, tile.num_stages),
        direct(call, rest, weight, 0, 2 * pairs, flag),
    ]
    if out_frames % 2:
        found.append(direct(call, rest, weight, 2 * pairs, 1))
    return found
