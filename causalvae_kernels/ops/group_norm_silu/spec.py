"""What `group_norm_silu` must compute and move."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Over x: one for the statistics of a group, one that writes. Their sum of bytes is the floor wherever a group
# does not fit into a cache.
PASSES = 2


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
