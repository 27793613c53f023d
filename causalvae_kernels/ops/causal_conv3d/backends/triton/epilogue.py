"""The Triton kernel that adds bias and residual to an output in place. Import it at the first call only."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from .....core.pixel_walk import PixelWalk
from .....core.triton_launch import Launch
from .....core.triton_source import narrow, offset_of, place_of_tile, tile_of, unspecialised, widen
from ..epilogue import NUM_WARPS, tile


@unspecialised
def add_bias_and_residual(
    out_ptr,
    bias_ptr,
    add_ptr,
    channels: tl.int32,
    pixels: tl.int32,
    size_1: tl.int32,
    size_2: tl.int32,
    out_c: tl.int64,
    out_0: tl.int64,
    out_1: tl.int64,
    out_2: tl.int64,
    out_3: tl.int64,
    add_c: tl.int64,
    add_0: tl.int64,
    add_1: tl.int64,
    add_2: tl.int64,
    add_3: tl.int64,
    c_tiles: tl.int32,
    p_tiles: tl.int32,
    OUT_INNER: tl.constexpr,
    ADD_INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Compute out = (out + bias[c]) + add over a tile of channels by pixels; see `PixelWalk`."""
    c_tile, p_tile, i1, i2, i3 = place_of_tile(tl.program_id(0), c_tiles, p_tiles, size_1, size_2)
    c = c_tile * BLOCK_C + tl.arange(0, BLOCK_C)
    p = p_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    out = out_ptr + offset_of(i1, i2, i3, out_1, out_2, out_3)
    add = add_ptr + offset_of(i1, i2, i3, add_1, add_2, add_3)
    out = tile_of(out, p, c, out_0, out_c, OUT_INNER)
    add = tile_of(add, p, c, add_0, add_c, ADD_INNER)
    VECTOR: tl.constexpr = 128 // out_ptr.dtype.element_ty.primitive_bitwidth
    if OUT_INNER == "channels" or ADD_INNER == "channels":  # the same number, now known to be a multiple
        channels = channels // VECTOR * VECTOR
    if OUT_INNER == "pixels" or ADD_INNER == "pixels":
        pixels = pixels // VECTOR * VECTOR
    inside = (p < pixels)[:, None] & (c < channels)[None, :]
    bias = widen(tl.load(bias_ptr + c, mask=c < channels, other=0.0))[None, :]
    sums = widen(tl.load(out, mask=inside, other=0.0)) + bias + widen(tl.load(add, mask=inside, other=0.0))
    tl.store(out, narrow(sums, out_ptr.dtype.element_ty), mask=inside)


def launch(y: Tensor, bias: Tensor, residual: Tensor) -> Launch:
    """Return the launch that adds bias and residual to `y`, all of one dtype."""
    walk = PixelWalk.of(y, residual)
    block_c, block_p = tile(walk)
    arguments = walk.numbers() | walk.steps(0, "out") | walk.steps(1, "add")
    del arguments["size_3"]
    arguments |= {
        "out_ptr": y,
        "bias_ptr": bias.contiguous(),
        "add_ptr": residual,
        "c_tiles": -(-walk.channels // block_c),
        "p_tiles": -(-walk.sizes[0] // block_p),
        "OUT_INNER": walk.inner(0),
        "ADD_INNER": walk.inner(1),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    return Launch(add_bias_and_residual, walk.programs(block_c, block_p), arguments, NUM_WARPS)
