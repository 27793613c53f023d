"""`swap(vae, memory="low")`: the two convolutions of a residual block in one activation and its buffer.

A convolution can write over its own input, a few frames at a time. An output frame needs input frames up to
its own; so the last ones come first, each written `GROUP` frames further behind than its input lies, where
only inputs lie that no earlier output needs. The second convolution adds to the residual where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.layout import is_channels_last_3d, memory_format_of
from ..ops import causal_conv3d
from ..ops.causal_conv3d import adds_in_place
from ..temporal import BufferPool, FrameBuffer
from ..temporal.state import final_state
from .conv import NO_HALO, Conv, may_write
from .norms import NormOp
from .producers import Held
from .swap import Link

# Frames that are convolved at a time. An even number: Winograd's form takes frames in pairs.
GROUP = 2


def fits(link: Link, x: Tensor, residual: Tensor, convs: tuple[Conv, Conv], norms: tuple[Any, Any]) -> bool:
    """Whether `residual_pair` computes this block: nothing is recorded, and all of it can be in place."""
    first, second = convs
    reads = (x, residual, *(t for conv in convs for t in (conv.weight, conv.bias)))
    return (
        may_write(*reads)
        and not torch.is_autocast_enabled(x.device.type)
        and all(norm is not None and norm.dtype(x) == x.dtype for norm in norms)
        and all(conv.head_room == 2 and conv.halo == NO_HALO for conv in convs)
        and all(conv.stride == (1, 1, 1) and conv.spatial_mode == "zeros" for conv in convs)
        and all(conv.weight.dtype == x.dtype for conv in convs)
        and x.shape[2] > GROUP
        and first.weight.shape[0] == second.weight.shape[0] == second.weight.shape[1] == residual.shape[1]
        and adds_in_place(residual, second.weight, second.bias, **second.options(link))
    )


def residual_pair(
    link: Link,
    held: Held,
    residual: Tensor,
    convs: tuple[Conv, Conv],
    norms: tuple[NormOp, NormOp],
    states: tuple[Callable[[], Tensor | None], Callable[[], Tensor | None]],
    between: Callable[[Tensor], None],
    pool: BufferPool | None,
    *,
    keeps: bool,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """Add to the residual what norm, convolution, norm, convolution make of the input; both are overwritten.

    Args:
        link: Of the swap.
        held: The input, owned; it may be the residual.
        residual: Where the result goes.
        convs: The two convolutions.
        norms: The norm in front of each, with SiLU behind it.
        states: Give the frames in front of the chunk, for each convolution; asked when they are needed.
        between: Called with what the first convolution wrote, to change it in place.
        pool: Where memory comes from, or None.
        keeps: Whether the new states are wanted.

    Returns:
        The residual, and the new states.
    """
    x = held.take()
    frames = x.shape[2]
    if residual is x:
        storage = _memory(x, x.shape[1], frames + GROUP, pool)
        y, out_of = storage[:, :, :frames], _frames_of(storage, GROUP)
        hidden = storage[:, :, GROUP:]
    else:
        storage = y = x
        hidden, out_of = _beside(x, convs[0], pool)
    norms[0].write(FrameBuffer(y, 0), x)
    first = _convolve(convs[0], link, y, states[0](), out_of, keeps)
    del y
    if isinstance(out_of, _Over):
        out_of.finish()
    elif residual is not x:
        storage = hidden
    del out_of, x
    between(hidden)
    norms[1].write(FrameBuffer(hidden, 0), hidden)
    second = _convolve(
        convs[1], link, hidden, states[1](), lambda t, n: residual[:, :, t : t + n], keeps, residual
    )
    if pool is not None:
        pool.give(storage)
    return residual, (first, second)


def _convolve(
    conv: Conv,
    link: Link,
    x: Tensor,
    state: Tensor | None,
    out_of: Callable[[int, int], Tensor],
    keeps: bool,
    residual: Tensor | None = None,
) -> Tensor | None:
    """Convolve the last frames first; return the new state, taken before anything is overwritten."""
    seen = conv.head_room
    new = final_state(x, seen, initial_state=state) if keeps and conv.streams else None
    for first, count in reversed(_groups(x.shape[2], state is None)):
        past = x[:, :, first - seen : first] if first >= seen else state
        if 0 < first < seen:
            past = final_state(x[:, :, :first], seen, initial_state=state)
        causal_conv3d(
            x[:, :, first : first + count],
            conv.weight,
            conv.bias,
            initial_state=past,
            residual=None if residual is None else residual[:, :, first : first + count],
            out=out_of(first, count),
            **conv.options(link),
        )
    return new


def _groups(frames: int, first_chunk: bool) -> list[tuple[int, int]]:
    """Return the first frame of each group and their number: in pairs as Winograd's form takes them.

    Of an odd number it takes the first frame alone where nothing is in front of it, else the last one.
    """
    lone = frames % GROUP if first_chunk else 0
    return ([(0, lone)] if lone else []) + [
        (first, min(GROUP, frames - first)) for first in range(lone, frames, GROUP)
    ]


def _frames_of(x: Tensor, behind: int = 0) -> Callable[[int, int], Tensor]:
    """Return what gives a number of frames from one on, or from so many behind it."""
    return lambda first, count: x[:, :, first + behind : first + behind + count]


class _Over:
    """Frames of fewer channels over those that they are computed from, flush with their end.

    The last ones would lie over inputs of their own group: they wait beside, and are copied at the end.
    """

    def __init__(self, x: Tensor, channels: int) -> None:
        """Lay the output over `x`, which is dense, of one sample and channels last."""
        _, inputs, self.frames, height, width = x.shape
        pixels = height * width
        self.size_in, self.size_out = pixels * inputs, pixels * channels
        shape = (1, channels, self.frames, height, width)
        strides = (self.frames * self.size_out, 1, self.size_out, width * channels, channels)
        self.start = self.frames * (self.size_in - self.size_out)
        self.out = x.as_strided(shape, strides, x.storage_offset() + self.start)
        self.waiting: list[tuple[int, Tensor]] = []

    def __call__(self, first: int, count: int) -> Tensor:
        """Return where the output frames of a group go."""
        window = self.out[:, :, first : first + count]
        if self.start + first * self.size_out < (first + count) * self.size_in:
            window = torch.empty_like(window, memory_format=torch.channels_last_3d)
            self.waiting.append((first, window))
        return window

    def finish(self) -> None:
        """Put those that waited where they belong."""
        for first, window in self.waiting:
            self.out[:, :, first : first + window.shape[2]].copy_(window)
        self.waiting.clear()


def _beside(x: Tensor, conv: Conv, pool: BufferPool | None) -> tuple[Tensor, Callable[[int, int], Tensor]]:
    """Return the memory of a convolution that changes the channels: over its input where it gets smaller."""
    channels, inputs = conv.weight.shape[:2]
    if channels < inputs and x.shape[0] == 1 and is_channels_last_3d(x):
        if x.is_contiguous(memory_format=torch.channels_last_3d):
            over = _Over(x, channels)
            return over.out, over
    out = _memory(x, channels, x.shape[2], pool)
    return out, _frames_of(out)


def _memory(x: Tensor, channels: int, frames: int, pool: BufferPool | None) -> Tensor:
    batch, _, _, height, width = x.shape
    return (
        (pool or BufferPool())
        .take(
            (batch, channels, frames, height, width),
            head_room=0,
            dtype=x.dtype,
            device=x.device,
            memory_format=memory_format_of(x),
        )
        .storage
    )
