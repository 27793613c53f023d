"""Storage that one activation leaves to the next, within one call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .frame_buffer import FrameBuffer


class BufferPool:
    """Frame buffers for one run through a model, made from those that were given back.

    It lives in a local variable of that run, so that whatever ends the run, an exception as well, frees it.
    What is given back must be in nobody else's hands. Fresh memory costs page faults on a CPU, more than the
    work on it (`core.memory`), and idle memory raises the peak: what does not fit the next request is let go.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def take(
        self,
        shape: Sequence[int],
        *,
        head_room: int,
        halo: Sequence[int] = (0, 0, 0, 0),
        tail_room: int = 0,
        dtype: torch.dtype,
        device: torch.device,
        memory_format: torch.memory_format,
    ) -> FrameBuffer:
        """Return a buffer for a body of `shape` (B, C, T, H, W); its contents are whatever was there."""
        batch, channels, frames, height, width = shape
        top, bottom, left, right = halo
        padded = (
            batch,
            channels,
            head_room + frames + tail_room,
            top + height + bottom,
            left + width + right,
        )
        elements = math.prod(padded)
        for index, tensor in enumerate(self._free):
            if tensor.dtype == dtype and tensor.device == device and _fits(elements, _elements(tensor)):
                storage = self._free.pop(index).as_strided(padded, _strides(padded, memory_format), 0)
                return FrameBuffer(storage, head_room, halo, tail_room)
        self.clear()
        return FrameBuffer.empty(
            shape,
            head_room=head_room,
            halo=halo,
            tail_room=tail_room,
            dtype=dtype,
            device=device,
            memory_format=memory_format,
        )

    def give(self, tensor: Tensor) -> None:
        """Give a tensor's whole storage back; nobody may read it any more."""
        self._free.append(tensor)

    def clear(self) -> None:
        """Free what was given back."""
        self._free.clear()


def _fits(needed: int, there: int) -> bool:
    """Up to a quarter may lie idle: a buffer's two frames of head-room beside an activation without any."""
    return needed <= there <= needed + needed // 4


def _elements(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()


def _strides(shape: Sequence[int], memory_format: torch.memory_format) -> tuple[int, ...]:
    batch, channels, frames, height, width = shape
    if memory_format == torch.channels_last_3d:
        pixel = channels
        return (frames * height * width * pixel, 1, height * width * pixel, width * pixel, pixel)
    return (channels * frames * height * width, frames * height * width, height * width, width, 1)
