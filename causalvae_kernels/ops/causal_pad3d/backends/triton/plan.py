"""How the Triton kernel walks a padding: which axis lies innermost, what is one long row, which tile.

Knows no Triton, so that the plan of any call can be looked at anywhere. Nothing in a plan's `constants`
depends on the number of frames or on height and width, but for whether they allow 16-byte accesses: a new
resolution compiles nothing new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .....core.dry_run import address

ITEMS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
ACCESS_BYTES = 16
NUM_WARPS = 4
# What 32-bit indices reach inside one frame of one channel, and in counting programs, with room for a tile.
INDEX_LIMIT = 2**31 - 2**16


@dataclass(frozen=True)
class PadPlan:
    """One launch.

    Attributes:
        tensors: `out`, `x` and the state, as integers of their item's size; `x` again without a state.
        strides: Five for each tensor, (B, C, T, H, W), in vectors of its alignment but for the innermost.
        sizes: Its numbers by name: C and W in vectors where `VEC_C` or `VEC_W` says so; tiles of the
            channels, of a padded row, and of the columns of a frame; how many programs write frames in
            front, and how many come before those of columns.
        constants: What the kernel is compiled for.
        programs: Size of the grid.
    """

    tensors: tuple[Tensor, Tensor, Tensor]
    strides: tuple[int, ...]
    sizes: dict[str, int]
    constants: dict[str, Any]
    programs: int

    def why_not(self) -> str | None:
        """Return a sentence if 32 bits cannot count the programs or the pixels that one of them looks at."""
        sides = self.sizes["left"] + self.sizes["right"]
        row = self.sizes["w_vectors"] * self.constants["VEC_W"] + sides
        most = max(self.programs, self.sizes["height"] * sides, row)
        if most <= INDEX_LIMIT:
            return None
        return f"the padding takes {most} steps, the kernel counts to {INDEX_LIMIT}; split the batch"


@dataclass
class _Walk:
    """A tensor as the kernel walks it: sizes and strides of (B, C, T, H, W)."""

    tensor: Tensor
    size: list[int]
    stride: list[int]

    @classmethod
    def of(cls, tensor: Tensor) -> _Walk:
        return cls(tensor.view(ITEMS[tensor.element_size()]), list(tensor.shape), list(tensor.stride()))

    def channels_last(self) -> bool:
        return self.size[1] > 1 and self.stride[1] < self.stride[4]

    def alignment(self, halo: Sequence[int]) -> int:
        """Return how many items one access may take; 0 if neighbours do not even touch."""
        inner = 1 if self.channels_last() else 4
        if self.stride[inner] != 1 and self.size[inner] > 1:
            return 0
        items = ACCESS_BYTES // self.tensor.element_size()
        whole = [self.size[inner]] + [
            s for d, (n, s) in enumerate(zip(self.size, self.stride, strict=True)) if d != inner and n > 1
        ]
        shifted = inner == 4 and any(halo[2:])
        aligned = address(self.tensor) % ACCESS_BYTES == 0 and not any(n % items for n in whole)
        return items if aligned and not shifted else 1

    def in_units(self, alignment: int) -> list[int]:
        """Return the strides in vectors; those that nothing walks along, or that are one, do not count."""
        inner = 1 if self.channels_last() else 4
        return [
            0 if n == 1 else s if d == inner else s // max(alignment, 1)
            for d, (n, s) in enumerate(zip(self.size, self.stride, strict=True))
        ]


def why_no_items(x: Tensor) -> str | None:
    """Return why the kernel cannot copy items of this dtype, or None."""
    if x.element_size() not in ITEMS:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    return None


def _merge(walks: Sequence[_Walk]) -> None:
    """Make one long row of a frame, then of all its channels, where they touch in every tensor."""

    def touch(outer: int, inner: int) -> bool:
        return all(w.stride[outer] == w.size[inner] * w.stride[inner] for w in walks) and (
            walks[0].size[outer] * walks[0].size[inner] <= INDEX_LIMIT
        )

    if touch(3, 4):
        for walk in walks:
            walk.size[3:] = [1, walk.size[3] * walk.size[4]]
        if touch(4, 1):
            for walk in walks:
                walk.size[4], walk.stride[4] = walk.size[4] * walk.size[1], walk.stride[1]
                walk.size[1] = 1


def _tile(
    channels: int, itemsize: int, alignments: Sequence[int], last: Sequence[bool], *, one_row: bool
) -> tuple[int, int]:
    """Return how many channels and how many pixels a program takes: powers of two, at most 8 KB together.

    So many bytes are four 16-byte accesses a thread; going item by item it is 16, in at most 90 registers.
    """
    items = min(4096 if max(alignments) > 1 else 2048, 8192 // itemsize)
    most = _power_of_two(channels)
    if all(last):
        # The widest block that leaves no more than a fifth of its lanes idle: 160 channels go by 64.
        blocks = [b for b in (32, 64, 128, 256) if -(-channels // b) * b * 4 <= channels * 5]
        block = max(blocks, default=min(most, 32))
    elif any(last):
        block = min(most, 64 if itemsize < 8 else 32)  # a square, whose way from row to column is a transpose
    else:
        block = min(most, items // (512 if one_row else 128))
    return block, items // block


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def plan_pad(
    out: Tensor,
    x: Tensor,
    state: Tensor | None,
    padding: int,
    halo: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    *,
    in_place: bool,
) -> PadPlan:
    """Return the launch that pads `x` into `out`.

    Args:
        out: Padded frames, any strides.
        x: The frames; in place, those inside `out`.
        state: The frames in front, or None.
        padding: Frames in front.
        halo: (top, bottom, left, right).
        temporal_mode: "replicate" or "zeros".
        spatial_mode: "zeros", "replicate" or "reflect".
        in_place: Write the border only.
    """
    top, bottom, left, right = halo
    state = state if padding else None
    walks = [_Walk.of(t) for t in (out, x) + ((state,) if state is not None else ())]
    if not any(halo):
        _merge(walks)
    if state is None:
        walks.append(walks[1])
    batch, channels, frames, height, width = walks[1].size
    alignments = [walk.alignment(halo) for walk in walks]
    last = [walk.channels_last() for walk in walks]
    vec_c, vec_w = (
        max(a if is_last is wanted else 1 for a, is_last in zip(alignments, last, strict=True)) or 1
        for wanted in (True, False)
    )
    block_c, block_w = _tile(channels, out.element_size(), alignments, last, one_row=not any(halo))

    temporal = "state" if state is not None else temporal_mode if padding else "zeros"
    c_tiles = -(-channels // block_c)
    w_tiles = -(-(left + width + right) // block_w)
    column_tiles = -(-height * (left + right) // block_w) if in_place else 0
    tiles = c_tiles * w_tiles
    padded_height = top + height + bottom
    head = batch * padded_height * tiles if padding else 0
    if temporal == "state":
        head *= padding
    if not in_place and temporal == "replicate":
        head = 0  # the programs of the first frame write it
    lines = batch * frames * (top + bottom if in_place else padded_height) * tiles
    columns = batch * frames * c_tiles * column_tiles
    return PadPlan(
        tensors=tuple(walk.tensor for walk in walks),
        strides=tuple(n for walk, a in zip(walks, alignments, strict=True) for n in walk.in_units(a)),
        sizes={
            "c_vectors": channels // vec_c,
            "frames": frames,
            "height": height,
            "w_vectors": width // vec_w,
            "padding": padding,
            "top": top,
            "bottom": bottom,
            "left": left,
            "right": right,
            "c_tiles": c_tiles,
            "w_tiles": w_tiles,
            "column_tiles": column_tiles,
            "head_programs": head,
            "line_programs": head + lines,
        },
        constants={
            "TEMPORAL": temporal,
            "SPATIAL": spatial_mode if any(halo) else "zeros",
            "IN_PLACE": in_place,
            "WIDTH_PADDED": left + right > 0,
            "OUT_LAST": last[0],
            "X_LAST": last[1],
            "STATE_LAST": last[2],
            "OUT_ALIGN": alignments[0],
            "X_ALIGN": alignments[1],
            "STATE_ALIGN": alignments[2],
            "VEC_C": vec_c,
            "VEC_W": vec_w,
            "BLOCK_C": block_c,
            "BLOCK_W": block_w,
        },
        programs=head + lines + columns,
    )
