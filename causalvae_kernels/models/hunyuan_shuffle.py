"""Frames and pixels folded into channels and back, with a shortcut: one pass over one output.

HunyuanVideo 1.5 and HunyuanImage's refiner change resolution by a convolution and a pixel shuffle; around it
goes a shortcut by the same shuffle whose channels are repeated (up) or averaged (down). A first frame that
time-doubling leaves single is shuffled in space only. What is repeated or shuffled is read through views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.layout import memory_format_of


def shuffled_up(h: Tensor, x: Tensor, channels: int, first: int, frames: int) -> Tensor:
    """Return the shuffle of `h` plus that of `x`, each of whose channels is repeated.

    Args:
        h: Shape (B, P, T, H, W); P is 4 * frames * channels, and may be more where no frame is doubled.
        x: Shape (B, Cin, T, H, W), dtype of `h`.
        channels: Of the result.
        first: So many frames at the beginning are not doubled, and use the first `channels` of each shuffled
            pixel: 0, 1 or T.
        frames: What others are multiplied by in time: 1 or 2.

    Returns:
        Shape (B, channels, first + frames * (T - first), 2 H, 2 W), channels_last_3d if `h` or `x` is.
    """
    batch, _, count, height, width = h.shape
    size = (batch, channels, first + frames * (count - first), 2 * height, 2 * width)
    out = torch.empty(size, dtype=h.dtype, device=h.device, memory_format=memory_format_of(h, x))
    for part, start, stop, times in ((0, 0, first, 1), (first, first, count, frames)):
        if start == stop:
            continue
        length = times * (stop - start)
        source = unfolded(x[:, :, start:stop], times)
        target = blocks(out.narrow(2, part, length), times).unflatten(1, (source.shape[1], -1))
        update = unfolded(h[:, :, start:stop], times).narrow(1, 0, channels)
        torch.add(update.unflatten(1, (source.shape[1], -1)), source.unsqueeze(2), out=target)
    return out


def shuffled_down(h: Tensor, x: Tensor, channels: int, first: int, frames: int) -> Tensor:
    """Return the inverse shuffle of `h` plus that of `x`, of whose channels neighbours are averaged.

    Args:
        h: Shape (B, channels / (4 * frames), T, H, W), H and W even.
        x: Shape (B, Cin, T, H, W), dtype of `h`.
        channels: Of the result.
        first: So many frames at the beginning have no partner; what others have in the channels of two frames
            is that of the one, twice: 0, 1 or T.
        frames: How many frames become one otherwise: 1 or 2.

    Returns:
        Shape (B, channels, first + (T - first) / frames, H / 2, W / 2), channels_last_3d if `h` or `x` is.
    """
    batch, quarter, count, height, width = h.shape
    size = (batch, channels, first + (count - first) // frames, height // 2, width // 2)
    out = torch.empty(size, dtype=h.dtype, device=h.device, memory_format=memory_format_of(h, x))
    for part, start, stop, times in ((0, 0, first, 1), (first, first, count, frames)):
        if start == stop:
            continue
        target = out.narrow(2, part, (stop - start) // times)
        source = folded(x[:, :, start:stop], times)
        group = times * 4 * x.shape[1] // channels
        mean = target.unflatten(1, (times, 2, 2, -1))
        torch.mean(source.unflatten(4, (-1, group)), dim=5, out=mean)
        target.unflatten(1, (-1, times, 2, 2, quarter)).add_(folded(h[:, :, start:stop], times).unsqueeze(1))
    return out


def unfolded(x: Tensor, times: int) -> Tensor:
    """Return a view (B, C, T, times, H, 2, W, 2) of (B, times * 2 * 2 * C, T, H, W)."""
    return x.unflatten(1, (times, 2, 2, -1)).permute(0, 4, 5, 1, 6, 2, 7, 3)


def folded(x: Tensor, times: int) -> Tensor:
    """Return a view (B, times, 2, 2, C, T, H, W) of (B, C, times * T, 2 H, 2 W)."""
    return blocks(x, times).permute(0, 3, 5, 7, 1, 2, 4, 6)


def blocks(x: Tensor, times: int) -> Tensor:
    """Return a view (B, C, T, times, H, 2, W, 2) of (B, C, times * T, 2 H, 2 W)."""
    return x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, times))
