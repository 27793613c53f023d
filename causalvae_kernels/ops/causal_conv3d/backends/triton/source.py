"""Device functions that the Triton convolutions share: where a value is read, and in which arithmetic.

The index arithmetic is that of `csrc/common/index.h`.
"""

from __future__ import annotations

import triton.language as tl

from .....core.triton_source import INTERPRETED, inlined, narrow, widen


@inlined
def multiply(a, b, sums):
    """Return sums + a @ b in float32; products of 16-bit values are exact in it."""
    if INTERPRETED:
        if a.dtype == tl.bfloat16:
            a = widen(a)
            b = widen(b)
    return tl.dot(a, b, sums, input_precision="ieee")


@inlined
def place_of(tile, frames, tiles_m, tiles_n, GROUP: tl.constexpr):
    """Return (batch, frame, tile of pixels, tile of output channels) of a program.

    Tiles of output channels come first: they read the same input. Then `GROUP` neighbouring frames at the
    same pixels: of kT source frames each, they share all but one with the next. Then the pixels, so that
    programs that run at the same time read the same rows, and every program walks through the weights in the
    same order. 132 programs of 128 pixels in groups of 4 frames cover 4,224 pixels: at 480x720 with 128
    channels in bfloat16 that is 8 rows of 6 frames, 9 MB beside 0.9 MB of weights, where frame after frame
    the same programs would read 26 rows of 3 frames, 14 MB, and every row three times from memory, since a
    frame of 88 MB does not stay in a second-level cache of 50.
    """
    tile_n = tile % tiles_n
    tile = tile // tiles_n
    batch = tile // (frames * tiles_m)
    tile = tile % (frames * tiles_m)
    group = tile // (GROUP * tiles_m)
    inside = tile % (GROUP * tiles_m)
    size = tl.minimum(frames - group * GROUP, GROUP)
    return batch, group * GROUP + inside % size, inside // size, tile_n


@inlined
def read_pixels(
    row, column, height, width, stride_h, stride_w, known, SPATIAL: tl.constexpr, MULTIPLE: tl.constexpr
):
    """Return (offsets of pixels in a frame, which pixels x channels to load); what is not loaded is zero.

    `known` tells which channels there are. The offsets are multiples of MULTIPLE.
    """
    if SPATIAL == "replicate":
        row = tl.minimum(tl.maximum(row, 0), height - 1)
        column = tl.minimum(tl.maximum(column, 0), width - 1)
    if SPATIAL == "reflect":
        row = tl.where(row < 0, -row, row)
        row = tl.where(row < height, row, 2 * (height - 1) - row)
        column = tl.where(column < 0, -column, column)
        column = tl.where(column < width, column, 2 * (width - 1) - column)
    seen = known[None, :]
    if SPATIAL == "zeros":
        # As unsigned numbers, those below zero are the largest.
        inside = (row.to(tl.uint32) < height.to(tl.uint32)) & (column.to(tl.uint32) < width.to(tl.uint32))
        seen = seen & inside[:, None]
    return tl.multiple_of(row * stride_h + column * stride_w, MULTIPLE), seen


@inlined
def finish(
    sums,
    pointers,
    place,
    size,
    out_strides,
    add_strides,
    OUT_LAST: tl.constexpr,
    OUT_WINDOW: tl.constexpr,
    OUT_ALIGNED: tl.constexpr,
    ADD_LIKE_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Add bias and residual to a tile of one output frame, round once, and store it.

    `pointers` are those to bias, residual and output; `place` is (batch, frame, tile of pixels, tile of
    channels) and `size` (channels, height, width) of the output.
    """
    bias_ptr, add_ptr, out_ptr = pointers
    batch, frame, tile_m, tile_n = place
    out_channels, out_height, out_width = size
    out_b, out_c, out_t, out_h, out_w = out_strides
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if bias_ptr is not None:
        sums += widen(tl.load(bias_ptr + n, mask=n < out_channels, other=0.0))[None, :]
    pixels = out_height * out_width
    limit = out_channels
    VECTOR: tl.constexpr = 128 // dtype.primitive_bitwidth
    if OUT_ALIGNED:
        limit = out_channels // VECTOR * VECTOR  # the same number, now known to be a multiple
    # 64 bits: an output frame of 512 channels passes 2**31 elements from 2048 x 2048 pixels on.
    start = batch.to(tl.int64) * out_b + frame.to(tl.int64) * out_t
    if OUT_WINDOW:
        pixel = m // out_width * out_h + m % out_width * out_w
        if OUT_ALIGNED:
            pixel = tl.multiple_of(pixel, VECTOR)
    elif OUT_LAST:
        pixel = m.to(tl.int64) * limit
    else:
        pixel = m
    if OUT_LAST:
        offset = pixel[:, None] + n[None, :]
    else:
        offset = pixel[:, None] + (n * out_c)[None, :]
    inside = (m < pixels)[:, None] & (n < limit)[None, :]
    if add_ptr is not None:
        if ADD_LIKE_OUT:
            added = add_ptr + start
            if OUT_ALIGNED:
                added = tl.multiple_of(added, 16)
            added = added + offset
        else:
            add_b, add_c, add_t, add_h, add_w = add_strides
            row = m // out_width
            column = m % out_width
            added = add_ptr + batch.to(tl.int64) * add_b + frame.to(tl.int64) * add_t
            added = added + (row * add_h + column * add_w)[:, None] + (n * add_c)[None, :]
        sums += widen(tl.load(added, mask=inside, other=0.0))
    out = out_ptr + start
    if OUT_ALIGNED:
        out = tl.multiple_of(out, 16)
    tl.store(out + offset, narrow(sums, dtype), mask=inside)
