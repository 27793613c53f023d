"""The Triton kernel that averages pairs of frames. Import it at the first call only."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .....core.pixel_walk import NEITHER, PixelWalk
from .....core.triton_launch import Launch
from .....core.triton_source import narrow, offset_of, place_of_tile, tile_of, unspecialised, widen

_NUM_WARPS = 4
_BYTES = 32  # of each frame that a thread reads


@unspecialised
def average(
    out_ptr,
    first_ptr,
    second_ptr,
    channels: tl.int32,
    pixels: tl.int32,
    size_1: tl.int32,
    size_2: tl.int32,
    out_c: tl.int64,
    out_0: tl.int64,
    out_1: tl.int64,
    out_2: tl.int64,
    out_3: tl.int64,
    x_c: tl.int64,
    x_0: tl.int64,
    x_1: tl.int64,
    x_2: tl.int64,
    x_3: tl.int64,
    c_tiles: tl.int32,
    p_tiles: tl.int32,
    OUT_INNER: tl.constexpr,
    X_INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Compute out = (first + second) / 2, rounded once, over a tile; both have the same strides."""
    c_tile, p_tile, i1, i2, i3 = place_of_tile(tl.program_id(0), c_tiles, p_tiles, size_1, size_2)
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    p = p_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    VECTOR: tl.constexpr = 128 // out_ptr.dtype.element_ty.primitive_bitwidth
    if OUT_INNER == "channels" or X_INNER == "channels":  # the same number, now known to be a multiple
        channels = channels // VECTOR * VECTOR
    if OUT_INNER == "pixels" or X_INNER == "pixels":
        pixels = pixels // VECTOR * VECTOR
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    start = offset_of(i1, i2, i3, x_1, x_2, x_3)
    first = tile_of(first_ptr + start, p, c, x_0, x_c, X_INNER)
    second = tile_of(second_ptr + start, p, c, x_0, x_c, X_INNER)
    # Halved before they are added, as the reference does: no sum overflows.
    mean = 0.5 * widen(tl.load(first, mask=inside, other=0.0))
    mean += 0.5 * widen(tl.load(second, mask=inside, other=0.0))
    out = tile_of(out_ptr + offset_of(i1, i2, i3, out_1, out_2, out_3), p, c, out_0, out_c, OUT_INNER)
    tl.store(out, narrow(mean, out_ptr.dtype.element_ty), mask=inside)


def launch(out: Tensor, first: Tensor, second: Tensor) -> Launch:
    """Return the launch that writes the averages of two tensors of equal strides into `out`."""
    walk = PixelWalk.of(out, first, second)
    block_c, block_p = walk.tile(_NUM_WARPS * 32 * _BYTES // out.element_size())
    arguments = walk.numbers() | walk.steps(0, "out") | walk.steps(1, "x")
    del arguments["size_3"]
    inner = walk.inner(1)
    arguments |= {
        "out_ptr": out,
        "first_ptr": first,
        "second_ptr": second,
        "c_tiles": -(-walk.channels // block_c),
        "p_tiles": -(-walk.sizes[0] // block_p),
        "OUT_INNER": walk.inner(0),
        "X_INNER": inner if inner == walk.inner(2) else NEITHER,
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    return Launch(average, walk.programs(block_c, block_p), arguments, _NUM_WARPS)
