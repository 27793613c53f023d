"""Frames that code has put together and nobody has needed in memory yet.

Between two convolutions a model cuts, repeats, pads and rearranges frames. Each of these copies; here they
only change a list of frames, so that a convolution can see that what it is given is the past, or zeros, or
its first frame repeated, in front of frames that lie somewhere already.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

VIDEO, FRAMES_FIRST, IMAGES = "bcthw", "btchw", "(bt)chw"
"""Orders of axes; any other order of the five letters may stand in their place."""


class Frame(NamedTuple):
    """One frame.

    Attributes:
        source: The number of the value that it is part of; None: zeros.
        index: Which frame of it.
        part: Which of how many equal parts of the channels; None: all.
    """

    source: int | None
    index: int = 0
    part: tuple[int, int] | None = None


NOTHING = Frame(None)


@dataclass(frozen=True)
class Clip:
    """Frames in a row, all of one size.

    Attributes:
        frames: The frames.
        batch: Clips at a time.
        channels: Of a frame.
        size: (H, W) of the frames as they lie in memory.
        dtype: Of the elements; that of the sources may be another one, which is converted from.
        repeat: How often each pixel is repeated in both directions.
        pad: Pixels around each frame, after that: top, bottom, left, right.
        pad_mode: What stands there: "zeros", "replicate" or "reflect".
        layout: The order of the axes.
    """

    frames: tuple[Frame, ...]
    batch: int
    channels: int
    size: tuple[int, int]
    dtype: torch.dtype
    repeat: int = 1
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    pad_mode: str = "zeros"
    layout: str = VIDEO

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the code sees."""
        top, bottom, left, right = self.pad
        size = (self.size[0] * self.repeat + top + bottom, self.size[1] * self.repeat + left + right)
        count = len(self.frames)
        if self.layout == IMAGES:
            return (self.batch * count, self.channels, *size)
        lengths = dict(zip(VIDEO, (self.batch, self.channels, count, *size), strict=True))
        return tuple([lengths[axis] for axis in self.layout])

    @property
    def time(self) -> int | None:
        """The axis of the frames; None where they share one with the clips of a batch."""
        if self.layout == IMAGES:
            return 0 if self.batch == 1 else None
        return self.layout.index("t")

    @property
    def is_padded(self) -> bool:
        """Whether there are pixels around the frames."""
        return any(self.pad)

    @property
    def sources(self) -> list[int]:
        """The values that the frames are part of."""
        return list(dict.fromkeys(f.source for f in self.frames if f.source is not None))

    def as_video(self) -> Clip:
        """Return it as (B, C, T, H, W)."""
        return replace(self, layout=VIDEO)

    def whole(self, frames_of: Callable[[int], int], dtype_of: Callable[[int], torch.dtype]) -> int | None:
        """Return the value that these frames are, all of it and nothing else; the layout aside."""
        source = self.frames[0].source if self.frames else None
        if source is None or self.repeat > 1 or self.is_padded or dtype_of(source) != self.dtype:
            return None
        wanted = tuple(Frame(source, i) for i in range(frames_of(source)))
        return source if self.frames == wanted else None


def rearranged(x: Tensor, layout: str) -> Tensor:
    """Return a video (B, C, T, H, W) in another order of axes."""
    if layout == VIDEO:
        return x
    if layout == IMAGES:
        return x.permute(0, 2, 1, 3, 4).flatten(0, 1)
    return x.permute([VIDEO.index(axis) for axis in layout])


def reshape_into(out: Tensor, x: Tensor) -> None:
    """Write `x` in another shape; where that only merges axes, it is written once."""
    shape = out.shape
    groups: list[list[int]] = []
    sizes = list(x.shape)
    for wanted in shape:
        group, size = [], 1
        while size < wanted and sizes:
            group.append(sizes.pop(0))
            size *= group[-1]
        if size != wanted:
            out.copy_(x.reshape(shape))
            return
        groups.append(group)
    if any(size != 1 for size in sizes) or 0 in x.shape:
        out.copy_(x.reshape(shape))
        return
    target = out
    for axis in range(len(groups) - 1, -1, -1):
        group = groups[axis]
        target = target.unflatten(axis, group) if group else target.select(axis, 0)
    target.copy_(x[(..., *[0] * len(sizes))])


def _pieces(clip: Clip) -> list[tuple[int | None, int, int, tuple[int, int] | None]]:
    """Return source, first frame, number of frames and part of what lies side by side."""
    pieces: list[tuple[int | None, int, int, tuple[int, int] | None]] = []
    for frame in clip.frames:
        if pieces and frame.source is not None:
            source, first, count, part = pieces[-1]
            if (source, first + count, part) == (frame.source, frame.index, frame.part):
                pieces[-1] = (source, first, count + 1, part)
                continue
        pieces.append((frame.source, frame.index, 1, frame.part))
    return pieces


def writer(clip: Clip, sources: list[int]) -> Callable[..., None]:
    """Return a function of memory (B, C, T, H, W) and the sources that puts a clip together there."""
    build, pieces = builder(clip.as_video(), sources), _pieces(clip)
    places = {source: place for place, source in enumerate(sources)}

    def write(out: Tensor, *values: Tensor) -> None:
        if clip.is_padded:
            out.copy_(build(*values))
            return
        at = 0
        for source, first, count, part in pieces:
            target = out.narrow(2, at, count)
            at += count
            if source is None:
                target.zero_()
                continue
            piece = values[places[source]].narrow(2, first, count)
            if part is not None:
                piece = piece.narrow(1, part[0] * clip.channels, clip.channels)
            if clip.repeat > 1:
                target = target.unflatten(4, (-1, clip.repeat)).unflatten(3, (-1, clip.repeat))
                piece = piece.unsqueeze(4).unsqueeze(6)
            target.copy_(piece)

    return write


def builder(clip: Clip, sources: list[int]) -> Callable[..., Tensor]:
    """Return a function of the sources, each (B, C, T, H, W), that puts a clip together."""
    pieces = _pieces(clip)
    places = {source: place for place, source in enumerate(sources)}
    zeros = (clip.batch, clip.channels, 1 if clip.frames else 0, *clip.size)
    if not clip.frames:
        pieces.append((None, 0, 0, None))

    def build(*values: Tensor) -> Tensor:
        found = []
        for source, first, count, part in pieces:
            if source is None:
                like = values[0]
                found.append(torch.zeros(zeros, dtype=like.dtype, device=like.device))
                continue
            piece = values[places[source]].narrow(2, first, count)
            if part is not None:
                piece = piece.narrow(1, part[0] * clip.channels, clip.channels)
            found.append(piece)
        x = found[0] if len(found) == 1 else torch.cat(found, dim=2)
        x = x.to(clip.dtype)
        if clip.repeat > 1:
            x = F.interpolate(x, scale_factor=(1.0, float(clip.repeat), float(clip.repeat)))
        if clip.is_padded:
            top, bottom, left, right = clip.pad
            mode = "constant" if clip.pad_mode == "zeros" else clip.pad_mode
            x = F.pad(x, (left, right, top, bottom, 0, 0), mode=mode)
        return rearranged(x, clip.layout)

    return build
