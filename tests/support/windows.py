"""Places in larger memory for the result of an op."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from causalvae_kernels import FrameBuffer


def windows_for(result: Tensor) -> Iterator[tuple[Tensor | FrameBuffer, Callable[[], bool]]]:
    """Give places for a tensor like this one, each with what tells whether all around it is as it was.

    Args:
        result: Shape (B, C, T, H, W).

    Yields:
        A contiguous `FrameBuffer` with head-room and a halo, one in channels_last_3d, and a tensor none of
        whose dimensions is dense, in channels last.
    """
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        buffer = FrameBuffer.empty(
            result.shape,
            head_room=2,
            halo=(1, 0, 2, 1),
            dtype=result.dtype,
            device=result.device,
            memory_format=memory_format,
        )
        yield buffer, _watch(buffer.storage, buffer.body)
    batch, channels, *size = result.shape
    space = result.new_empty((batch, *(2 * n + 1 for n in size), 2 * channels + 1)).permute(0, 4, 1, 2, 3)
    out = space[:, 1::2, 1::2, 1::2, 1::2]
    yield out, _watch(space, out)


def _watch(space: Tensor, window: Tensor) -> Callable[[], bool]:
    space.fill_(7.0)
    window.fill_(float("nan"))

    def untouched() -> bool:
        written = window.clone()
        window.fill_(7.0)
        same = bool(space.eq(7.0).all())
        window.copy_(written)
        return same

    return untouched
