"""The launches of a group norm in Triton: pieces of statistics, their merge, and the pass that writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .....core.pixel_walk import CHANNELS, NEITHER, PixelWalk, covering_block, power_of_two
from .....core.triton_launch import Launch
from .kernels import merge_statistics, normalise, partial_statistics

NUM_WARPS = 4
# Tiles of a chunk: more make fewer pieces to merge, fewer keep every multiprocessor at work.
_MOST_STEPS = 64
_PROGRAMS = 2048


def launches(
    out: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    eps: float,
    silu: bool,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    repeats: Sequence[int] = (0, 1, 1, 1),
) -> list[Launch]:
    """Return the three launches that write the group norm of `x` into `out`.

    Args:
        out: Shape and dtype of `x`, any strides; may be `x`.
        x: Shape (B, C, T, H, W), any strides.
        weight: Shape (C,), or None.
        bias: Shape (C,), or None.
        num_groups: A divisor of C.
        eps: Added to the variance.
        silu: Whether to apply SiLU.
        scale: Shape (B, C, t, h, w), or None.
        shift: Shape of `scale`, or None.
        repeats: Of scale and shift: lone first frame, frames, rows, columns, as `Repeats` has them.
    """
    batch, channels = x.shape[:2]
    statistics = torch.empty((batch, 3, channels), dtype=torch.float32, device=x.device)
    before = _statistics(x, statistics, weight, num_groups, eps)
    walk = PixelWalk.of(x, out, batch_apart=True, merge=scale is None)
    # Two tensors a thread of four 16-byte accesses each, or 8 elements of each.
    items = _items(x, 64 if scale is None else 32)
    block_c, block_p = walk.tile(items // 4 if NEITHER in (walk.inner(0), walk.inner(1)) else items)
    arguments = walk.numbers() | walk.steps(0, "x") | walk.steps(1, "out")
    del arguments["size_3"]
    lone, *times = repeats
    arguments |= {
        "out_ptr": out,
        "x_ptr": x,
        "statistics_ptr": statistics,
        "bias_ptr": None if bias is None else bias.contiguous(),
        "lone": int(lone),
        **{n: t.bit_length() - 1 for n, t in zip(("frames", "rows", "columns"), times, strict=True)},
        "c_tiles": -(-channels // block_c),
        "p_tiles": -(-walk.sizes[0] // block_p),
        "SILU": silu,
        "X_INNER": walk.inner(0),
        "OUT_INNER": walk.inner(1),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
        **_small("scale", scale),
        **_small("shift", shift),
    }
    return [*before, Launch(normalise, walk.programs(block_c, block_p), arguments, NUM_WARPS)]


def _items(x: Tensor, nbytes: int) -> int:
    """Return how many elements of `x` a program has if a thread has this many bytes of it."""
    return NUM_WARPS * 32 * nbytes // x.element_size()


def _statistics(
    x: Tensor, statistics: Tensor, weight: Tensor | None, num_groups: int, eps: float
) -> list[Launch]:
    batch, channels, *size = x.shape
    # Row by row, whatever touches, so that the sums do not depend on where x lies.
    walk = PixelWalk.of(x, merge=False)
    last = walk.neighbours(0) == CHANNELS
    block_c = covering_block(channels) if last else min(power_of_two(channels), 32)
    block_p = _items(x, 32) // block_c
    tiles = walk.programs(block_c, block_p)
    steps = min(max(tiles // _PROGRAMS, 1), _MOST_STEPS)
    chunk = steps * block_p
    chunks = -(-walk.sizes[0] // chunk)
    pieces = chunks * walk.sizes[1] * walk.sizes[2]
    partial = torch.empty((batch, pieces, 2, channels), dtype=torch.float32, device=x.device)
    shared: dict[str, Any] = {"pixels": walk.sizes[0], "chunks": chunks, "channels": channels}
    numbers = walk.numbers() | walk.steps(0, "x") | shared
    del numbers["size_3"]
    first = numbers | {
        "out_ptr": partial,
        "x_ptr": x,
        "c_tiles": -(-channels // block_c),
        "steps": steps,
        "group": channels // num_groups,
        "X_INNER": walk.inner(0),
        "BLOCK_C": block_c,
        "BLOCK_P": block_p,
    }
    second = shared | {
        "out_ptr": statistics,
        "x_ptr": x,
        "x_c": x.stride(1),
        "x_b": x.stride(0),
        "partial_ptr": partial,
        "weight_ptr": None if weight is None else weight.contiguous(),
        "groups": num_groups,
        "chunk": chunk,
        "pieces": pieces,
        "elements": float(size[0] * size[1] * size[2] * (channels // num_groups)),
        "eps": eps,
        "BLOCK": 1024,
    }
    return [
        Launch(partial_statistics, batch * pieces * first["c_tiles"], first, NUM_WARPS),
        Launch(merge_statistics, batch * num_groups, second, NUM_WARPS),
    ]


def _small(name: str, small: Tensor | None) -> dict[str, Any]:
    """Return the arguments that tell of scale or shift."""
    if small is None:
        strides = {f"{name}_{i}": 0 for i in ("c", 0, 1, 2, 3)}
        return {f"{name}_ptr": None, f"{name.upper()}_INNER": NEITHER, **strides}
    walk = PixelWalk.of(small, merge=False)
    inner = CHANNELS if walk.inner(0) == CHANNELS else NEITHER  # columns repeat, and are no neighbours
    return {f"{name}_ptr": small, f"{name.upper()}_INNER": inner, **walk.steps(0, name)}
