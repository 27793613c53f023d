"""The shortcuts of Wan 2.2's blocks, which average or repeat what goes in; here they copy nothing.

Both count the elements (c, t, h, w) of frames and pixels folded into channels, (C, factor_t, factor_s,
factor_s). `AvgDown3D` averages `group_size` of the input's in a row; in `DupUp3D` as many as `repeats` of the
output's in a row are one element of the input.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def averaged(module: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return an `AvgDown3D` of `x`.

    Args:
        module: The shortcut.
        x: Shape (B, C, T, H, W).

    Returns:
        Shape (B, *sizes, T', H', W'), and the sizes: four factors of the channels.
    """
    factor_t, factor_s = module.factor_t, module.factor_s
    factors = (x.shape[1], factor_t, factor_s, factor_s)
    sizes = _sizes(factors, module.group_size)
    if sizes is None:
        return module(x).unflatten(1, (module.out_channels, 1, 1, 1)), (module.out_channels, 1, 1, 1)
    missing = -x.shape[2] % factor_t
    x = F.pad(x, (0, 0, 0, 0, missing, 0)) if missing else x
    parts = _split(_folded(x, factor_t, factor_s), factors, sizes)
    reduced = [dim for dim in (2, 4, 6, 8) if parts.shape[dim] > 1]
    parts = parts.mean(reduced, keepdim=True) if reduced else parts
    return parts.squeeze((2, 4, 6, 8)), sizes


def add_averaged(y: Tensor, module: nn.Module, small: Tensor) -> None:
    """Add what `averaged` returned to `y`, shape (B, C', T', H', W'), in place."""
    y.unflatten(1, small.shape[1:5]).add_(small)


def add_repeated(y: Tensor, module: nn.Module, x: Tensor, first_chunk: bool) -> bool:
    """Add a `DupUp3D` of `x` to `y` in place; return whether it could be done.

    Args:
        y: Shape (B, C', T', H', W').
        module: The shortcut.
        x: Shape (B, C, T, H, W).
        first_chunk: Whether all but the last of the frames that the first one becomes are left out.
    """
    factor_t, factor_s = module.factor_t, module.factor_s
    factors = (module.out_channels, factor_t, factor_s, factor_s)
    sizes = _sizes(factors, module.repeats)
    batch, _, frames, height, width = x.shape
    left_out = factor_t - 1 if first_chunk else 0
    expected = (batch, module.out_channels, frames * factor_t - left_out, height * factor_s, width * factor_s)
    if sizes is None or y.shape != expected or y.dtype != x.dtype:
        return False
    x = x.unflatten(1, sizes)
    for dim in (2, 4, 6, 8):
        x = x.unsqueeze(dim)
    if left_out:
        lead = _split(
            _folded(y[:, :, :1], 1, factor_s), (factors[0], 1, *factors[2:]), (sizes[0], 1, *sizes[2:])
        )
        lead.add_(x[:, :, :, -1:, :, :, :, :, :, :1])
        x, y = x[:, :, :, :, :, :, :, :, :, 1:], y[:, :, 1:]
    if x.shape[9]:
        _split(_folded(y, factor_t, factor_s), factors, sizes).add_(x)
    return True


def _sizes(factors: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """Return what is left of each factor when their product is divided by `count`, the last one first.

    None where that cannot be done factor by factor.
    """
    left = []
    for factor in reversed(factors):
        if count % factor == 0:
            count //= factor
            left.append(1)
        elif factor % count == 0:
            left.append(factor // count)
            count = 1
        else:
            return None
    return tuple(reversed(left))


def _folded(x: Tensor, factor_t: int, factor_s: int) -> Tensor:
    """Return a view of shape (B, C, factor_t, factor_s, factor_s, T, H, W)."""
    x = x.unflatten(4, (-1, factor_s)).unflatten(3, (-1, factor_s)).unflatten(2, (-1, factor_t))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6)


def _split(x: Tensor, factors: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """Return a view in which each of four dimensions is two: what is left of it, and what goes."""
    for dim, factor, size in zip((4, 3, 2, 1), reversed(factors), reversed(sizes), strict=True):
        x = x.unflatten(dim, (size, factor // size))
    return x
