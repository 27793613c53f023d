"""The arguments of `rms_norm`, and what it must compute and move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work

# A pixel's channels are summed and written while they are in a cache, so x is read once.
PASSES = 1

# The least norm that is divided by, as in `torch.nn.functional.normalize`.
EPS = 1e-12


class RmsNormArgs(NamedTuple):
    """The arguments of the operator, checked; those of the function but for `silu`: whether to apply it."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    eps: float
    silu: bool

    @property
    def out_shape(self) -> torch.Size:
        """Of the result."""
        return self.x.shape

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the result."""
        return torch.promote_types(self.x.dtype, self.weight.dtype)

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        return Work(flops(self.x.shape, silu=self.silu), bytes_moved(self.x.shape, self.x.element_size()))


def flops(shape: Sequence[int], *, silu: bool = True) -> int:
    """Return the floating-point operations: two for the sum of squares, three to scale, four for SiLU.

    Args:
        shape: (B, C, T, H, W).
        silu: Whether the activation is applied.
    """
    return (9 if silu else 5) * math.prod(shape)


def bytes_moved(shape: Sequence[int], itemsize: int) -> int:
    """Return the bytes of x, read once, and of the result, written once.

    Args:
        shape: (B, C, T, H, W).
        itemsize: Bytes per element.
    """
    return (PASSES + 1) * math.prod(shape) * itemsize


def moves(args: RmsNormArgs, out: Tensor | None) -> list[Pass]:
    """Return its pass: x is read once."""
    written = args.x.numel() * args.x.element_size()
    return [Pass("rms_norm", bytes_moved(args.x.shape, args.x.element_size()) - written, written)]
