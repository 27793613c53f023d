"""Pixels folded into channels, by one strided write into memory of the wanted layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import memory
from .conv import may_write


def pixels_to_channels(
    x: Tensor,
    factors: Sequence[int],
    *,
    memory_format: torch.memory_format,
    repeats_first: bool = False,
) -> Tensor:
    """Return every block of pixels as one pixel with the channels (c, time, height, width).

    Args:
        x: Shape (B, C, T, H, W), any strides, whole blocks.
        factors: (ft, fh, fw), the size of a block.
        memory_format: Of the result.
        repeats_first: The first frame fills a block alone: it stands there ft times.

    Returns:
        Shape (B, C * ft * fh * fw, T / ft, H / fh, W / fw), or (T + ft - 1) / ft frames.
    """
    ft, fh, fw = factors
    x = x.unflatten(4, (-1, fw)).unflatten(3, (-1, fh))
    order = (0, 1, 3, 5, 7, 2, 4, 6)
    first = x[:, :, :1].unsqueeze(3).expand(-1, -1, -1, ft, -1, -1, -1, -1)
    alone = repeats_first and ft > 1
    rest = x[:, :, 1:] if alone else x
    sources = [first.permute(order)] if alone else []
    if rest.shape[2]:
        sources.append(rest.unflatten(2, (-1, ft)).permute(order))
    if not may_write(x):
        return torch.cat(sources, dim=5).flatten(1, 4).contiguous(memory_format=memory_format)
    batch, channels, _, _, _, _, height, width = sources[0].shape
    frames = sum(source.shape[5] for source in sources)
    shape = (batch, channels * ft * fh * fw, frames, height, width)
    out = memory.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
    target, begin = out.unflatten(1, sources[0].shape[1:5]), 0
    for source in sources:
        target.narrow(5, begin, source.shape[5]).copy_(source)
        begin += source.shape[5]
    return out
