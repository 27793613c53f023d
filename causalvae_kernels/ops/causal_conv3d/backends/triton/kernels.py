"""The direct convolution in Triton: an implicit matrix product, its kernel and how it is launched.

A program computes BLOCK_M neighbouring pixels of one output frame by BLOCK_N output channels: a sum over taps
and over blocks of BLOCK_K input channels, in float32. Since it has one output frame, a tap has one source
frame: which one, and whether it lies in the state or in the input, is a scalar, and a frame of zeros is not
visited at all.
"""

from __future__ import annotations

import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .....core.triton_launch import Launch
from .....core.triton_source import unspecialised
from .call import Call, kernel_arguments, packed
from .source import finish, multiply, place_of, read_pixels
from .tiles import Tile


@unspecialised
def conv_direct(
    x_ptr,
    past_ptr,
    w,
    bias_ptr,
    add_ptr,
    out_ptr,
    channels: tl.int32,
    out_channels: tl.int32,
    height: tl.int32,
    width: tl.int32,
    causal: tl.int32,
    front: tl.int32,
    top: tl.int32,
    left: tl.int32,
    step_t: tl.int32,
    step_h: tl.int32,
    step_w: tl.int32,
    dilation_t: tl.int32,
    dilation_h: tl.int32,
    dilation_w: tl.int32,
    frames: tl.int32,
    out_height: tl.int32,
    out_width: tl.int32,
    x_b: tl.int64,
    x_c: tl.int64,
    x_t: tl.int64,
    x_h: tl.int64,
    x_w: tl.int64,
    past_b: tl.int64,
    past_c: tl.int64,
    past_t: tl.int64,
    past_h: tl.int64,
    past_w: tl.int64,
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
    FRAME_TAPS: tl.constexpr,
    TAPS: tl.constexpr,
    ZERO_PAST: tl.constexpr,
    SPATIAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    WIDE: tl.constexpr,
    OUT_LAST: tl.constexpr,
    OUT_WINDOW: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    ADD_LIKE_OUT: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """out[b, n, t, h, w] = bias[n] + add[b, n, t, h, w] + sum over taps and c of W[n, tap, c] x[b, c, seen].

    `past_ptr` (the `causal` frames before the input), `bias_ptr` and `add_ptr` (the residual) may be None.
    `w` holds (Cout, taps, Cin), contiguous: a pointer, or with DESCRIPTOR a tensor descriptor. `x_b` and its
    like are strides; `frames` are those of the output. The first tap of output 0 sees frame -`front`, row
    -`top`, column -`left`; a dilation below zero walks back from there. See `kernel_arguments` for the words
    in capitals.
    """
    pixels = out_height * out_width
    tiles_m = tl.cdiv(pixels, BLOCK_M)
    tiles_n = tl.cdiv(out_channels, BLOCK_N)
    batch, frame, tile_m, tile_n = place_of(tl.program_id(0), frames, tiles_m, tiles_n, GROUP)

    # The last tile's rows beyond the frame compute its last pixel again, and are not stored.
    pixel = tl.minimum(tile_m * BLOCK_M + tl.arange(0, BLOCK_M), pixels - 1)
    row = pixel // out_width * step_h - top
    column = pixel % out_width * step_w - left
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_K)
    steps_k = tl.cdiv(channels, BLOCK_K)
    limit = channels
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth if ALIGNED else 1
    if ALIGNED:
        limit = channels // VECTOR * VECTOR  # the same number, now known to be a multiple
    if not WIDE:
        x_c, x_h, x_w = x_c.to(tl.int32), x_h.to(tl.int32), x_w.to(tl.int32)
        past_c, past_h, past_w = past_c.to(tl.int32), past_h.to(tl.int32), past_w.to(tl.int32)
    if not DESCRIPTOR:
        w_rows = w + (n.to(tl.int64) * (TAPS * limit))[None, :]
        if ALIGNED:
            w_rows = tl.multiple_of(w_rows, [16, 16])
        in_rows = (n < out_channels)[None, :]
    x_ptr += batch.to(tl.int64) * x_b
    if past_ptr is not None:
        past_ptr += batch.to(tl.int64) * past_b
    start = frame * step_t - front

    tap = 0
    if ZERO_PAST:
        tap = tl.cdiv(tl.maximum(-start, 0), dilation_t) * FRAME_TAPS
    block = 0
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range((TAPS - tap) * steps_k):
        time = start + tap // FRAME_TAPS * dilation_t
        place = tap
        if FRAME_TAPS > KH * KW:  # low parts of sums of weights see the first pixels again
            place = tap % FRAME_TAPS
        source = x_ptr + tl.maximum(time, 0) * x_t
        stride_c, stride_h, stride_w = x_c, x_h, x_w
        if past_ptr is not None:
            source = tl.where(time < 0, past_ptr + (time + causal) * past_t, source)
            stride_h = tl.where(time < 0, past_h, x_h)
            stride_w = tl.where(time < 0, past_w, x_w)
            if not ALIGNED:
                stride_c = tl.where(time < 0, past_c, x_c)
        k = block * BLOCK_K + channel
        known = k < limit
        offset, seen = read_pixels(
            row + place // KW % KH * dilation_h,
            column + place % KW * dilation_w,
            height,
            width,
            stride_h,
            stride_w,
            known,
            SPATIAL,
            VECTOR,
        )
        across = k
        if ALIGNED:
            source = tl.multiple_of(source, 16)
        else:
            across = k * stride_c
        a = tl.load(source + offset[:, None] + across[None, :], mask=seen, other=0.0)
        if DESCRIPTOR:
            b = w.load([tile_n * BLOCK_N, tap * channels + block * BLOCK_K]).T
        else:
            b = tl.load(w_rows + (tap * limit + k)[:, None], mask=known[:, None] & in_rows, other=0.0)
        sums = multiply(a, b, sums)
        block += 1
        tap = tl.where(block == steps_k, tap + 1, tap)
        block = tl.where(block == steps_k, 0, block)

    ptrs = (bias_ptr, add_ptr, out_ptr)
    size = (out_channels, out_height, out_width)
    out = (out_b, out_c, out_t, out_h, out_w)
    add = (add_b, add_c, add_t, add_h, add_w)
    if BLOCK_N > 128:
        # Half by half: beside the residual, sums of 256 channels do not fit into the registers.
        HALF: tl.constexpr = BLOCK_N // 2
        near, far = sums.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
        place = (batch, frame, tile_m, 2 * tile_n)
        finish(
            near, ptrs, place, size, out, add, OUT_LAST, OUT_WINDOW, OUT_ALIGNED, ADD_LIKE_OUT, BLOCK_M, HALF
        )
        place = (batch, frame, tile_m, 2 * tile_n + 1)
        finish(
            far, ptrs, place, size, out, add, OUT_LAST, OUT_WINDOW, OUT_ALIGNED, ADD_LIKE_OUT, BLOCK_M, HALF
        )
    else:
        place = (batch, frame, tile_m, tile_n)
        finish(
            sums,
            ptrs,
            place,
            size,
            out,
            add,
            OUT_LAST,
            OUT_WINDOW,
            OUT_ALIGNED,
            ADD_LIKE_OUT,
            BLOCK_M,
            BLOCK_N,
        )


def direct(call: Call, tile: Tile) -> Launch:
    """Return the launch that computes a call, its work cut into these tiles."""
    batch, out_channels, frames, out_height, out_width = call.out.shape
    pixels = out_height * out_width
    programs = batch * frames * -(-pixels // tile.block_m) * -(-out_channels // tile.block_n)
    descriptor = tile.descriptor and call.aligned and call.x.shape[1] % tile.block_k == 0
    weight = packed(call.weight)
    if descriptor:
        rows = weight.view(out_channels, -1)
        weight = TensorDescriptor(rows, list(rows.shape), list(rows.stride()), [tile.block_n, tile.block_k])
    arguments = kernel_arguments(call) | {
        "w": weight,
        "DESCRIPTOR": descriptor,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        "GROUP": tile.group,
    }
    return Launch(conv_direct, programs, arguments, tile.num_warps, tile.num_stages)
