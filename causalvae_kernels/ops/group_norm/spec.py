"""The arguments of `group_norm`, and what it must compute and move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work

# Over x: one for the statistics of a group, one that writes. Their sum of bytes is the floor wherever a group
# does not fit into a cache.
PASSES = 2


class GroupNormArgs(NamedTuple):
    """The arguments of the operator, checked; those of the function but for `silu`: whether to apply it."""

    x: Tensor
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
        return self.x.dtype

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        return Work(flops(self.x.shape, silu=self.silu), bytes_moved(self.x.shape, self.x.element_size()))


def flops(shape: Sequence[int], *, silu: bool = True) -> int:
    """Return the floating-point operations, an exponential and a division counted as one each.

    For each element three for the statistics (subtract, multiply, add), two for scale and shift, and four
    for SiLU (negate, exponential, add, divide).

    Args:
        shape: (B, C, T, H, W).
        silu: Whether the activation is applied.
    """
    return (9 if silu else 5) * math.prod(shape)


def bytes_moved(shape: Sequence[int], itemsize: int) -> int:
    """Return the bytes of x, read twice, and of the result, written once.

    Args:
        shape: (B, C, T, H, W).
        itemsize: Bytes per element.
    """
    return (PASSES + 1) * math.prod(shape) * itemsize


def moves(args: GroupNormArgs, out: Tensor | None) -> list[Pass]:
    """Return its pass: x is read twice."""
    written = args.x.numel() * args.x.element_size()
    return [Pass("group_norm", bytes_moved(args.x.shape, args.x.element_size()) - written, written)]
