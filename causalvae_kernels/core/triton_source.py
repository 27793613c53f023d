"""What Triton kernels are made with: how they are compiled, how values become float32 and are rounded.

This file imports Triton; see `triton_runtime` on when it may be imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from .triton_runtime import interpreting

# Triton's interpreter (3.9) holds bfloat16 as its bits: it multiplies the bits as integers in `dot` and
# truncates where float32 becomes bfloat16. There, and only there, `widen` and `narrow` do it, and so does
# `multiply` of the convolutions.
INTERPRETED = tl.constexpr(interpreting())


def unspecialised(kernel: Callable[..., None]) -> Any:
    """Compile a kernel for its types and constants only.

    Left to itself, Triton compiles anew for every size that is 1 or divisible by 16, and for every address or
    stride that is; here what a load may rely on is a constant, ALIGNED.
    """
    parameters = inspect.signature(kernel).parameters.values()
    return triton.jit(
        kernel, do_not_specialize=[p.name for p in parameters if p.annotation != "tl.constexpr"]
    )


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function that kernels call.

    The interpreter runs a plain one just as well, and exchanges functions of `triton.language` anew for one
    under `triton.jit`: 0.5 ms a call, as much as ten additions.
    """
    return function if interpreting() else triton.jit(function)


@inlined
def widen(x):
    """Return `x` as float32, without loss."""
    if INTERPRETED:
        if x.dtype == tl.bfloat16:
            return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@inlined
def narrow(x, dtype: tl.constexpr):
    """Return float32 values rounded to the nearest of `dtype`, ties to even."""
    if INTERPRETED:
        if dtype == tl.bfloat16:
            bits = x.to(tl.int32, bitcast=True)
            bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
            return bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@inlined
def place_of_tile(number, c_tiles, p_tiles, size_1, size_2):
    """Return (tile of channels, tile of pixels, i1, i2, i3) of a program of a `PixelWalk`."""
    c_tile = number % c_tiles
    number = number // c_tiles
    p_tile = number % p_tiles
    number = number // p_tiles
    i1 = number % size_1
    number = number // size_1
    return c_tile, p_tile, i1, number % size_2, number // size_2


@inlined
def offset_of(i1, i2, i3, stride_1, stride_2, stride_3):
    """Return where the axes of pixels but the innermost begin, in 64 bits."""
    return i1.to(tl.int64) * stride_1 + i2.to(tl.int64) * stride_2 + i3.to(tl.int64) * stride_3


@inlined
def tile_of(pointer, p, c, stride_p, stride_c, INNER: tl.constexpr):
    """Return pointers to pixels p by channels c; INNER, see `PixelWalk.inner`, is told to the compiler."""
    if INNER == "channels":
        rows = tl.multiple_of(pointer + p * stride_p, 16)
        tile = rows[:, None] + c[None, :]
    elif INNER == "pixels":
        columns = tl.multiple_of(pointer + c * stride_c, 16)
        tile = columns[None, :] + p[:, None]
    else:
        tile = (pointer + p * stride_p)[:, None] + (c * stride_c)[None, :]
    return tile
