"""The Triton kernels of the group norms: statistics in two steps, then the pass that writes.

For each channel c of a group, with mean and biased variance over the group's channels, frames and pixels,

    y = (x - mean) * weight[c] / sqrt(var + eps) + bias[c]      out = silu(y * scale + shift)

Everything is counted from the first value of a group, its pivot: what float32 rounds off is then a part of
the spread and not of the mean. An average is taken twice, the second time of what is left. Nothing is added
by atomics, so that a call gives the same bits every time.
"""

from __future__ import annotations

import triton.language as tl

from .....core.triton_source import inlined, narrow, offset_of, place_of_tile, tile_of, unspecialised, widen


@unspecialised
def partial_statistics(
    out_ptr,
    x_ptr,
    channels: tl.int32,
    pixels: tl.int32,
    size_1: tl.int32,
    size_2: tl.int32,
    x_c: tl.int64,
    x_0: tl.int64,
    x_1: tl.int64,
    x_2: tl.int64,
    x_3: tl.int64,
    c_tiles: tl.int32,
    chunks: tl.int32,
    steps: tl.int32,
    group: tl.int32,
    X_INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Mean of x - pivot and sum of squared differences from it, of each channel over a chunk of pixels.

    Each place of a tile runs Welford's recurrence over the `steps` tiles of a chunk; their results are merged
    at the end by Chan's formula. `out` is (B, pieces, 2, C), its pieces in the order of the axes; `group` is
    how many channels one has.
    """
    c_tile, piece, i1, i2, i3 = place_of_tile(tl.program_id(0), c_tiles, chunks, size_1, size_2)
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    limit = channels
    if X_INNER == "channels":  # the same number, now known to be a multiple
        limit = channels // VECTOR * VECTOR
    if X_INNER == "pixels":
        pixels = pixels // VECTOR * VECTOR
    chunk = steps * BLOCK_P
    first = piece * chunk
    end = tl.minimum(first + chunk, pixels)
    pivot = tl.load(x_ptr + i3.to(tl.int64) * x_3 + c // group * group * x_c, mask=c < channels, other=0.0)
    pivot = widen(pivot)[None, :]
    x_ptr += offset_of(i1, i2, i3, x_1, x_2, x_3)
    out_ptr += (((i3.to(tl.int64) * size_2 + i2) * size_1 + i1) * chunks + piece) * 2 * channels
    mean = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    number = 0.0
    for start in range(first, end, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        # A chunk is a multiple of a block, so that the end of the pixels is the only one that cuts a block.
        inside = (p < pixels)[:, None]
        x = tl.load(tile_of(x_ptr, p, c, x_0, x_c, X_INNER), mask=inside & (c < limit)[None, :], other=0.0)
        number += 1.0
        x = widen(x) - pivot
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / number)
        squares += delta * (x - mean)
    total = end - first
    weights = tl.maximum(tl.cdiv(total - tl.arange(0, BLOCK_P), BLOCK_P), 0).to(tl.float32)[:, None]
    average = tl.sum(weights * mean, axis=0) / total
    average += tl.sum(weights * (mean - average[None, :]), axis=0) / total
    apart = mean - average[None, :]
    squares = tl.sum(squares + weights * apart * apart, axis=0)
    out = out_ptr + c
    tl.store(out, average, mask=c < channels)
    tl.store(out + channels, squares, mask=c < channels)


@unspecialised
def merge_statistics(
    out_ptr,
    x_ptr,
    partial_ptr,
    weight_ptr,
    x_c: tl.int64,
    x_b: tl.int64,
    channels: tl.int32,
    groups: tl.int32,
    pixels: tl.int32,
    chunks: tl.int32,
    chunk: tl.int32,
    pieces: tl.int32,
    elements: tl.float32,
    eps: tl.float32,
    BLOCK: tl.constexpr,
):
    """Merge the pieces of a group by Chan's formula.

    `out` is (B, 3, C): for each channel the mean, what float32 rounded off it, and
    weight[c] / sqrt(var + eps). The pieces of an axis have `chunk` pixels but for the last; `elements` is how
    many the group has.
    """
    batch, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    width = channels // groups
    partial_ptr += batch * pieces * 2 * channels + group * width
    entries = pieces * width
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        j = start + lane
        piece = j // width
        count = tl.minimum(pixels - piece % chunks * chunk, chunk).to(tl.float32)
        at = partial_ptr + piece.to(tl.int64) * 2 * channels + j % width
        sums += count * tl.load(at, mask=j < entries, other=0.0)
    mean = tl.sum(sums) / elements
    sums = tl.zeros((BLOCK,), tl.float32)
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, entries, BLOCK):
        j = start + lane
        piece = j // width
        count = tl.minimum(pixels - piece % chunks * chunk, chunk).to(tl.float32)
        at = partial_ptr + piece.to(tl.int64) * 2 * channels + j % width
        apart = tl.where(j < entries, tl.load(at, mask=j < entries, other=0.0) - mean, 0.0)
        sums += count * apart
        inside = tl.load(at + channels, mask=j < entries, other=0.0) + count * apart * apart
        squares += tl.where(j < entries, inside, 0.0)
    factor = 1.0 / tl.sqrt_rn(tl.sum(squares) / elements + eps)
    # The sum of two numbers and its rounding error (Knuth's TwoSum).
    pivot = widen(tl.load(x_ptr + batch * x_b + group * width * x_c))
    whole = pivot + mean
    part = whole - pivot
    rest = (pivot - (whole - part)) + (mean - part) + tl.sum(sums) / elements
    all_ones = tl.full((BLOCK,), 1.0, tl.float32)
    for start in range(0, width, BLOCK):
        j = start + lane
        scaled = factor * all_ones
        if weight_ptr is not None:
            scaled *= widen(tl.load(weight_ptr + group * width + j, mask=j < width, other=0.0))
        out = out_ptr + batch * 3 * channels + group * width + j
        tl.store(out, whole * all_ones, mask=j < width)
        tl.store(out + channels, rest * all_ones, mask=j < width)
        tl.store(out + 2 * channels, scaled, mask=j < width)


@inlined
def silu_of(y):
    """Return y / (1 + exp(-y))."""
    return y / (1.0 + tl.exp(-y))


@unspecialised
def normalise(
    out_ptr,
    x_ptr,
    statistics_ptr,
    bias_ptr,
    scale_ptr,
    shift_ptr,
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
    scale_c: tl.int64,
    scale_0: tl.int64,
    scale_1: tl.int64,
    scale_2: tl.int64,
    scale_3: tl.int64,
    shift_c: tl.int64,
    shift_0: tl.int64,
    shift_1: tl.int64,
    shift_2: tl.int64,
    shift_3: tl.int64,
    lone: tl.int32,
    frames: tl.int32,
    rows: tl.int32,
    columns: tl.int32,
    c_tiles: tl.int32,
    p_tiles: tl.int32,
    SILU: tl.constexpr,
    X_INNER: tl.constexpr,
    OUT_INNER: tl.constexpr,
    SCALE_INNER: tl.constexpr,
    SHIFT_INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Normalise a tile, and write it anywhere, `x` itself included.

    With `scale` and `shift` the axes are columns, rows, frames and batch. Those of x are 2 ** `frames` and so
    on times those of scale; a `lone` (1 or 0) first frame of x takes the first of scale.
    """
    c_tile, p_tile, i1, i2, i3 = place_of_tile(tl.program_id(0), c_tiles, p_tiles, size_1, size_2)
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    p = p_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    statistics = statistics_ptr + i3.to(tl.int64) * 3 * channels + c
    all_channels = channels
    if X_INNER == "channels" or OUT_INNER == "channels":  # the same number, now known to be a multiple
        channels = channels // VECTOR * VECTOR
    if X_INNER == "pixels" or OUT_INNER == "pixels":
        pixels = pixels // VECTOR * VECTOR
    known = c < channels
    inside = (p < pixels)[:, None] & known[None, :]
    x = x_ptr + offset_of(i1, i2, i3, x_1, x_2, x_3)
    x = widen(tl.load(tile_of(x, p, c, x_0, x_c, X_INNER), mask=inside, other=0.0))
    mean = tl.load(statistics, mask=known, other=0.0)
    rest = tl.load(statistics + all_channels, mask=known, other=0.0)
    factor = tl.load(statistics + 2 * all_channels, mask=known, other=0.0)
    y = ((x - mean[None, :]) - rest[None, :]) * factor[None, :]
    if bias_ptr is not None:
        y += widen(tl.load(bias_ptr + c, mask=known, other=0.0))[None, :]
    if scale_ptr is not None:
        row = i1 >> rows
        frame = ((i2 - lone) >> frames) + lone
        column = p >> columns
        scale = scale_ptr + offset_of(row, frame, i3, scale_1, scale_2, scale_3)
        shift = shift_ptr + offset_of(row, frame, i3, shift_1, shift_2, shift_3)
        scale = tile_of(scale, column, c, scale_0, scale_c, SCALE_INNER)
        shift = tile_of(shift, column, c, shift_0, shift_c, SHIFT_INNER)
        y = y * widen(tl.load(scale, mask=inside, other=0.0)) + widen(tl.load(shift, mask=inside, other=0.0))
    if SILU:
        y = silu_of(y)
    out = out_ptr + offset_of(i1, i2, i3, out_1, out_2, out_3)
    out = tile_of(out, p, c, out_0, out_c, OUT_INNER)
    tl.store(out, narrow(y, out_ptr.dtype.element_ty), mask=inside)
