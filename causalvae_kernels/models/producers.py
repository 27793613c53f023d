"""A norm with SiLU behind it writes where the next convolution reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.layout import memory_format_of
from ..temporal import FrameBuffer
from .conv import NO_HALO, Conv, may_write, needs_no_room
from .norms import NormOp
from .swap import Link


def activated(
    norm: NormOp,
    link: Link,
    conv: Conv | None,
    x: Tensor,
    *,
    overwrite: bool = False,
) -> Tensor | FrameBuffer:
    """Return SiLU of a norm of `x`, where possible in the memory that a convolution reads.

    Args:
        norm: The norm.
        link: Of the swap.
        conv: What reads the result; None: anything.
        x: The activation.
        overwrite: Whether `x` may be overwritten.
    """
    wide = norm.widened(x)
    overwrite, x = overwrite or wide is not x, wide
    del wide
    buffer = _destination(link, conv, x, norm.dtype(x), norm.reads, overwrite)
    if buffer is None:
        return norm(x)
    norm.write(buffer, x)
    return _readable(buffer)


def silu(link: Link, conv: Conv | None, y: Tensor) -> Tensor | FrameBuffer:
    """Return SiLU of `y`, which a hook may keep, where possible in the memory that a convolution reads."""
    buffer = _destination(link, conv, y, y.dtype, (), False)
    if buffer is None:
        return F.silu(y)
    torch.ops.aten.silu.out(y, out=buffer.body)
    return _readable(buffer)


def _readable(buffer: FrameBuffer) -> Tensor | FrameBuffer:
    border = buffer.head_room or buffer.tail_room or any(buffer.halo)
    return buffer if border else buffer.storage


def _destination(
    link: Link,
    conv: Conv | None,
    x: Tensor,
    dtype: torch.dtype,
    reads: Sequence[Tensor],
    overwrite: bool,
) -> FrameBuffer | None:
    """Return where to write what `conv` reads; None: a gradient or a compiler wants a fresh tensor."""
    if conv is None or not may_write(x, *reads):
        return None
    head_room, halo = conv.head_room, conv.halo
    if dtype == x.dtype and needs_no_room(conv, link, x):
        halo = NO_HALO
        if not conv.tail_room:
            if overwrite:
                return FrameBuffer(x, 0)
            head_room = 0
    return FrameBuffer.empty(
        x.shape,
        head_room=head_room,
        halo=halo,
        tail_room=conv.tail_room,
        dtype=dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
