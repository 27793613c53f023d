"""The arguments of `spatial_norm`, how it repeats scale and shift, what it must compute and move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work
from ..group_norm import spec as group_norm

# Over x, as in `group_norm`; scale and shift are read once.
PASSES = group_norm.PASSES


class SpatialNormArgs(NamedTuple):
    """The arguments of the operator, checked; those of the function but for `silu`: whether to apply it."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    weight: Tensor | None
    bias: Tensor | None
    num_groups: int
    eps: float
    silu: bool

    @property
    def out_shape(self) -> torch.Size:
        """Of the result."""
        return self.x.shape

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the result."""
        return torch.promote_types(self.x.dtype, self.scale.dtype)

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        moved = bytes_moved(self.x.shape, self.scale.shape[2:], self.x.element_size())
        return Work(flops(self.x.shape, silu=self.silu), moved)


class Repeats(NamedTuple):
    """How often nearest neighbour repeats a latent frame and pixel.

    Frame f, pixel (h, w) of x takes pixel (h // rows, w // columns) of latent frame
    f // frames, or, with `lone_first`, of frame 0 for f = 0 and of 1 + (f - 1) // frames for others.
    """

    lone_first: bool
    frames: int
    rows: int
    columns: int


def has_lone_first(frames: int) -> bool:
    """Whether frame 0 takes frame 0 alone: an odd number of frames above one begins a video."""
    return frames > 1 and frames % 2 == 1


def repeats(size: Sequence[int], small: Sequence[int]) -> Repeats | None:
    """Return the repeats, or None where one is no power of two.

    Other factors leave the index to rounding: nearest neighbour takes floor(i * n / m) in float32.

    Args:
        size: (T, H, W) of x.
        small: (t, h, w) of scale and shift.
    """
    lone = has_lone_first(size[0])
    pairs = [(size[0] - lone, small[0] - lone), (size[1], small[1]), (size[2], small[2])]
    factors = [n // m if m > 0 else 0 for n, m in pairs]
    if any(n != f * m or f < 1 or f & (f - 1) for (n, m), f in zip(pairs, factors, strict=True)):
        return None
    return Repeats(lone, *factors)


def why_not_repeated(size: Sequence[int], small: Sequence[int]) -> str | None:
    """Return why a kernel cannot find the latent pixel by dividing, or None."""
    if repeats(size, small) is not None:
        return None
    rest = " behind the first frame" if has_lone_first(size[0]) else ""
    return (
        f"scale and shift of (t, h, w) {tuple(small)} do not become (T, H, W) {tuple(size)}{rest} by "
        "repeating each frame, row and column 1, 2, 4, ... times, and the kernel knows only that"
    )


def why_not_scale(x: Tensor, scale: Tensor) -> str | None:
    """Return why a kernel cannot read scale and shift where they lie, or None."""
    if scale.dtype != x.dtype:
        return f"scale is {scale.dtype} and x is {x.dtype}, and the kernel knows one dtype for both"
    return why_not_repeated(x.shape[2:], scale.shape[2:])


def flops(shape: Sequence[int], *, silu: bool = True) -> int:
    """Return the floating-point operations: those of the group norm, and two for scale and shift.

    Args:
        shape: (B, C, T, H, W) of x.
        silu: Whether the activation is applied.
    """
    return group_norm.flops(shape, silu=silu) + 2 * math.prod(shape)


def bytes_moved(shape: Sequence[int], small: Sequence[int], itemsize: int) -> int:
    """Return the bytes of x, read twice, of scale and shift, read once, and of the result.

    Args:
        shape: (B, C, T, H, W) of x.
        small: (t, h, w) of scale and shift.
        itemsize: Bytes per element.
    """
    latent = 2 * math.prod(shape[:2]) * math.prod(small)
    return group_norm.bytes_moved(shape, itemsize) + latent * itemsize


def moves(args: SpatialNormArgs, out: Tensor | None) -> list[Pass]:
    """Return its pass: x is read twice, scale and shift once, where they lie."""
    written = args.x.numel() * args.x.element_size()
    moved = bytes_moved(args.x.shape, args.scale.shape[2:], args.x.element_size())
    return [Pass("spatial_norm", moved - written, written)]
