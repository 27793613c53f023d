"""Storage with room in time and a halo in space, so that padding is a write of the border only.

A producer writes its frames into `body`; `causal_pad3d_` then fills the border, and a convolution reads
`storage`. Nothing that was written is copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import memory
from ..core.checks import check_countable, check_video, int_tuple
from ..core.errors import InvalidInput

_SIZES = (int, torch.SymInt)


class FrameBuffer:
    """Frames of shape (B, C, T, H, W) inside a larger tensor.

    Attributes:
        storage: Shape (B, C, head_room + T + tail_room, top + H + bottom, left + W + right).
        head_room: Frames of room before the first one.
        halo: Pixels of room around every frame: (top, bottom, left, right).
        tail_room: Frames of room behind the last one, for a convolution that looks ahead.
    """

    __slots__ = ("halo", "head_room", "storage", "tail_room")

    def __init__(
        self, storage: Tensor, head_room: int, halo: Sequence[int] = (0, 0, 0, 0), tail_room: int = 0
    ) -> None:
        """Wrap existing storage.

        Raises:
            InvalidInput: The storage leaves no room for a frame between its borders.
        """
        check_video("FrameBuffer", "storage", storage)
        top, bottom, left, right = halo = _check_border(head_room, halo, tail_room)
        _, _, frames, height, width = storage.shape
        if frames <= head_room + tail_room or height <= top + bottom or width <= left + right:
            raise InvalidInput(
                f"FrameBuffer: storage of shape {tuple(storage.shape)} has no room for a body inside "
                f"head_room {head_room}, tail_room {tail_room} and halo {halo}"
            )
        self.storage, self.head_room, self.halo, self.tail_room = storage, head_room, halo, tail_room

    @classmethod
    def empty(
        cls,
        shape: Sequence[int],
        *,
        head_room: int,
        halo: Sequence[int] = (0, 0, 0, 0),
        tail_room: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> FrameBuffer:
        """Allocate a buffer for a body of `shape` (B, C, T, H, W); nothing is initialised.

        Raises:
            InvalidInput: The shape has not five sizes of 1 or more, the border is negative, `dtype` is none
                of torch's, or 64-bit sizes cannot count the bytes.
        """
        sizes = tuple(shape) if isinstance(shape, Sequence) else ()
        if len(sizes) != 5 or not all(isinstance(size, _SIZES) and size > 0 for size in sizes):
            raise InvalidInput(
                f"FrameBuffer.empty: shape is {shape!r}, expected five sizes (B, C, T, H, W), each at least 1"
            )
        batch, channels, frames, height, width = sizes
        if not isinstance(dtype, torch.dtype):
            raise InvalidInput(f"FrameBuffer.empty: dtype is {dtype!r}, expected one like torch.float32")
        top, bottom, left, right = halo = _check_border(head_room, halo, tail_room)
        full = (batch, channels, head_room + frames + tail_room, top + height + bottom, left + width + right)
        check_countable("FrameBuffer.empty", "the storage", full, dtype)
        storage = memory.empty(full, dtype=dtype, device=device, memory_format=memory_format)
        return cls(storage, head_room, halo, tail_room)

    @property
    def body(self) -> Tensor:
        """The frames without the border: a view of shape (B, C, T, H, W) to write into."""
        return body_of(self.without_tail, self.head_room, self.halo)

    @property
    def without_tail(self) -> Tensor:
        """The storage but for the frames of room behind the last one."""
        if not self.tail_room:
            return self.storage
        return self.storage.narrow(2, 0, self.storage.shape[2] - self.tail_room)

    def __repr__(self) -> str:
        """Name the body's shape and the border."""
        return (
            f"FrameBuffer(body={tuple(self.body.shape)}, head_room={self.head_room}, halo={self.halo}, "
            f"tail_room={self.tail_room}, dtype={self.storage.dtype})"
        )


def _check_border(head_room: int, halo: Sequence[int], tail_room: int) -> tuple[int, ...]:
    """Return the halo as a tuple; require numbers that are not negative."""
    halo = int_tuple("FrameBuffer", "halo", halo, 4)
    rooms = (head_room, tail_room)
    if any(not isinstance(room, _SIZES) for room in rooms) or min(*rooms, *halo) < 0:
        raise InvalidInput(
            f"FrameBuffer: got head_room {head_room!r}, tail_room {tail_room!r} and halo {halo}, expected "
            "ints, nothing negative"
        )
    return halo


def body_of(storage: Tensor, head_room: int, halo: Sequence[int]) -> Tensor:
    """Return the view of `storage` between its borders (see `FrameBuffer`); without any, `storage` itself."""
    if head_room:
        storage = storage.narrow(2, head_room, storage.shape[2] - head_room)
    top, bottom, left, right = halo
    if top or bottom or left or right:
        _, _, _, height, width = storage.shape
        return storage[:, :, :, top : height - bottom, left : width - right]
    return storage
