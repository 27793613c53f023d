"""Pixels folded into channels and back, by one strided write into memory of the wanted layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import memory
from .conv import may_write


def channels_to_pixels(
    x: Tensor,
    factors: Sequence[int],
    *,
    memory_format: torch.memory_format,
    drops_lead: bool = False,
    width_first: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """Return every pixel's channels (c, time, height, width) spread over a block of pixels.

    Args:
        x: Shape (B, C * ft * fh * fw, T, H, W), any strides.
        factors: (ft, fh, fw), the size of a block.
        memory_format: Of the result.
        drops_lead: Leave out the first ft - 1 frames, so that the first one becomes one.
        width_first: The channels are (c, time, width, height).
        residual: Added to `x` before; its channels are repeated as often as it takes.

    Returns:
        Shape (B, C, T * ft, H * fh, W * fw), or ft - 1 frames less.
    """
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    repeats = 1 if residual is None else x.shape[1] // residual.shape[1]
    blocks = _blocks(x, factors, repeats, width_first)
    added = None if residual is None else _blocks(residual, factors, 1, width_first)
    dropped = factors[0] - 1 if drops_lead else 0
    if not may_write(x, residual):
        blocks = blocks if added is None else blocks + added
        pixels = blocks.flatten(7, 8).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return pixels[:, :, dropped:].contiguous(memory_format=memory_format)
    batch, _, channels, frames, ft, height, fh, width, fw = blocks.shape
    shape = (batch, repeats * channels, frames * ft - dropped, height * fh, width * fw)
    out = memory.empty(shape, dtype=dtype, device=x.device, memory_format=memory_format)
    # The first block of frames is cut, so that it is written by itself.
    first, rest = (slice(0, 1), slice(dropped, None)), (slice(1, None), slice(None))
    pieces = [first, rest] if dropped else [(slice(None), slice(None))]
    for time, in_block in pieces:
        source = blocks[:, :, :, time, in_block]
        target = out[:, :, time].unflatten(4, (width, fw)).unflatten(3, (height, fh))
        target = target.unflatten(2, source.shape[3:5]).unflatten(1, (repeats, channels))
        if added is None:
            target.copy_(source)
        else:
            torch.add(source, added[:, :, :, time, in_block], out=target)
    return out


def _blocks(x: Tensor, factors: Sequence[int], repeats: int, width_first: bool) -> Tensor:
    """Return a view of shape (B, repeats, C, T, ft, H, fh, W, fw)."""
    ft, fh, fw = factors
    if width_first:
        x = x.unflatten(1, (repeats, -1, ft, fw, fh)).transpose(4, 5)
    else:
        x = x.unflatten(1, (repeats, -1, ft, fh, fw))
    return x.permute(0, 1, 2, 6, 3, 7, 4, 8, 5)


def fits_blocks(shape: Sequence[int], factors: Sequence[int], repeats_first: bool = False) -> bool:
    """Whether frames of this shape are whole blocks; otherwise the model says what is wrong."""
    frames = shape[2] + (factors[0] - 1 if repeats_first else 0)
    return not any(size % factor for size, factor in zip((frames, *shape[3:]), factors, strict=True))


def pixels_to_channels(
    x: Tensor,
    factors: Sequence[int],
    *,
    memory_format: torch.memory_format,
    repeats_first: bool = False,
    width_first: bool = False,
) -> Tensor:
    """Return every block of pixels as one pixel with the channels (c, time, height, width).

    Args:
        x: Shape (B, C, T, H, W), any strides, whole blocks.
        factors: (ft, fh, fw), the size of a block.
        memory_format: Of the result.
        repeats_first: The first frame fills a block alone: it stands there ft times.
        width_first: The channels are (c, time, width, height).

    Returns:
        Shape (B, C * ft * fh * fw, T / ft, H / fh, W / fw), or (T + ft - 1) / ft frames.
    """
    ft, fh, fw = factors
    x = x.unflatten(4, (-1, fw)).unflatten(3, (-1, fh))
    order = (0, 1, 3, 7, 5, 2, 4, 6) if width_first else (0, 1, 3, 5, 7, 2, 4, 6)
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
