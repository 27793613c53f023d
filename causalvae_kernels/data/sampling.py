"""Which frames of a clip are taken, and which part of them at which size: a reader that says it exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import InvalidInput
from .video import fit, open_video, picture_of, rate_of


@dataclass(frozen=True)
class Sampling:
    """What of a clip is encoded.

    Attributes:
        frames: At most so many frames, from the first one on; None takes all.
        stride: Every how manyth frame is taken, the first one always.
        fps: A rate to take frames at, before `stride`: picture k is the one that is seen k / fps seconds
            after the first frame. A frame is seen until the next one, the last one for its own duration. None
            takes the frames as they are stored, whatever their times.
        size: (width, height): the largest centred part of that shape is cut out, its sides rounded to whole
            pixels, and resized by `torch.nn.functional.interpolate` (bilinear, antialiased), values rounded
            to the nearest of 0 to 255. None cuts the centre out of the frame, so that both sides are
            multiples of the model's unit; nothing is resized. An odd rest is cut off below and to the right.
    """

    frames: int | None = None
    stride: int = 1
    fps: Fraction | None = None
    size: tuple[int, int] | None = None

    def rate(self, fps: Fraction) -> Fraction:
        """Return the frames per second of what is taken of a clip with this rate."""
        return (self.fps or fps) / self.stride

    def count(self, frames: int, fps: Fraction) -> int:
        """Return about how many frames are taken of so many: exact where the rate is constant."""
        taken = frames if self.fps is None else max(round(frames * self.fps / (fps or self.fps)), 1)
        taken = -(-taken // self.stride)
        return taken if self.frames is None else min(taken, self.frames)

    def target(self, width: int, height: int, unit: int) -> tuple[int, int]:
        """Return the width and height that frames are brought to.

        Raises:
            InvalidInput: The frames are smaller than the unit.
        """
        if self.size is not None:
            return self.size
        if min(width, height) < unit:
            raise InvalidInput(
                f"its frames are {width}x{height}, expected {unit} pixels a side at least, or a size to "
                "bring them to"
            )
        return width // unit * unit, height // unit * unit


def read_sampled(path: Path, sampling: Sampling, unit: int) -> Iterator[Tensor]:
    """Read the frames that are taken, one by one, upright.

    Args:
        path: A video file.
        sampling: What is taken.
        unit: Of which width and height must be multiples.

    Yields:
        (H, W, 3), uint8, RGB.

    Raises:
        InvalidInput: It is no video, a frame is damaged, or the size of the frames changes and none is given.
        MissingPackage: If PyAV is not installed.
    """
    shape = None
    with open_video(path) as (container, stream):
        for index, frame in enumerate(_taken(container, stream, sampling)):
            pixels = picture_of(frame)
            if sampling.size is None and pixels.shape != (shape or pixels.shape):
                raise InvalidInput(f"{path}: the size of its frames changes; give a size to bring them to")
            shape = pixels.shape
            target = sampling.target(shape[1], shape[0], unit)
            yield fit(pixels, *target) if sampling.size is not None else _cut(pixels, *target)
            if index + 1 == sampling.frames:
                return
    if shape is None:
        raise InvalidInput(f"{path}: holds no frame")


def _cut(pixels: Tensor, width: int, height: int) -> Tensor:
    """Return the centre of a frame."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width].contiguous()


def _taken(container: Any, stream: Any, sampling: Sampling) -> Iterator[Any]:
    """Yield the frames at the rate and stride that are wanted, not yet converted."""
    frames = _whole(container, stream)
    if sampling.fps is not None:
        frames = _resampled(frames, stream, sampling.fps)
    for index, frame in enumerate(frames):
        if index % sampling.stride == 0:
            yield frame


def _whole(container: Any, stream: Any) -> Iterator[Any]:
    for index, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise InvalidInput(f"{container.name}: frame {index} is damaged")
        yield frame


def _resampled(frames: Iterator[Any], stream: Any, fps: Fraction) -> Iterator[Any]:
    """Yield the frame that is seen at each multiple of 1 / fps."""
    rate, step = rate_of(stream), 1 / fps
    begin = end = due = None
    last = None
    for index, frame in enumerate(frames):
        base = frame.time_base or stream.time_base
        now = Fraction(index) / rate if frame.pts is None else frame.pts * Fraction(base)
        if begin is None:
            begin = due = now
        while last is not None and due < now:
            yield last
            due += step
        last = frame
        end = now + (frame.duration * Fraction(base) if frame.duration else 1 / rate)
    while last is not None and due < end:
        yield last
        due += step
