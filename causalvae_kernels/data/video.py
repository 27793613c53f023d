"""Reading and writing video files with PyAV, frame by frame, upright as players show them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.errors import InvalidInput
from ..core.optional import require
from ..core.outputs import written_whole

_FALLBACK_FPS = Fraction(25)


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its first video stream, and the size of its first frame.

    Attributes:
        width: Pixels of a frame as it is seen: turned as the file says.
        height: The same.
        fps: Frames per second; 25 where the file does not say.
        num_frames: As the file's header says, which may be wrong; None where it does not say.
    """

    width: int
    height: int
    fps: Fraction
    num_frames: int | None


def probe(path: str | Path) -> VideoInfo:
    """Size, rate and length of a video file.

    Raises:
        InvalidInput: If there is no such file, or it is no video.
        MissingPackage: If PyAV is not installed.
    """
    with open_video(Path(path)) as (container, stream):
        width, height = stream.width, stream.height
        first = next(container.decode(stream), None)
        if first is not None:
            width, height = first.width, first.height
            if turn_of(first).aside:
                width, height = height, width
        return VideoInfo(width, height, rate_of(stream), stream.frames or None)


def read_frames(
    path: str | Path, num_frames: int, start: int = 0, size: tuple[int, int] | None = None
) -> tuple[Tensor, Fraction]:
    """Reads some frames; stops decoding after the last of them.

    Args:
        path: A video file.
        num_frames: How many frames, at least 1.
        start: Index of the first one, at least 0.
        size: (width, height) of the result: the largest centred part of that shape is cut out and resized.
            None keeps the frames as they are.

    Returns:
        The frames (T, H, W, 3), uint8, RGB, and the frames per second.

    Raises:
        InvalidInput: If there is no such file, it is no video, or it has too few frames.
        MissingPackage: If PyAV is not installed.
    """
    return torch.stack(list(iter_frames(path, num_frames, start, size))), probe(path).fps


def iter_frames(
    path: str | Path, num_frames: int | None = None, start: int = 0, size: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Reads frames one by one, as they are asked for; the file is open until the last one, or `close()`.

    Args:
        path: A video file.
        num_frames: How many frames, at least 1; None reads all that there are.
        start: As in `read_frames`.
        size: As in `read_frames`.

    Yields:
        (H, W, 3), uint8, RGB, upright; all of one size.

    Raises:
        InvalidInput: As `read_frames`; what the file lacks is told at its end.
        MissingPackage: If PyAV is not installed.
    """
    if num_frames is not None and num_frames < 1:
        raise InvalidInput(f"number of frames: got {num_frames}, expected at least 1")
    if start < 0:
        raise InvalidInput(f"first frame: got {start}, expected at least 0")
    if size is not None and min(size) < 1:
        raise InvalidInput(f"size: got {size[0]}x{size[1]}, expected a width and a height of at least 1")
    index, shape = -1, None
    with open_video(Path(path)) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index < start:
                continue
            pixels = picture_of(frame)
            if size is None and pixels.shape != (shape or pixels.shape):
                raise InvalidInput(
                    f"{path}: the size of its frames changes at frame {index}; give a fixed size"
                )
            shape = pixels.shape
            yield pixels if size is None else fit(pixels, *size)
            if num_frames is not None and index == start + num_frames - 1:
                return
    if num_frames is None and index >= start:
        return
    wanted = num_frames or 1
    raise InvalidInput(
        f"{path}: has {index + 1} frames, expected at least {start + wanted} "
        f"({wanted} frame{'s' * (wanted > 1)}, the first of them being frame {start})"
    )


def fit(frame: Tensor, width: int, height: int) -> Tensor:
    """Cuts out the largest centred part of the shape width : height and resizes it, with antialiasing.

    Args:
        frame: (H, W, 3), uint8.
        width: Of the result, in pixels.
        height: Of the result, in pixels.

    Returns:
        (height, width, 3), uint8.
    """
    old_height, old_width = frame.shape[:2]
    scale = min(old_height / height, old_width / width)
    cut_height = max(min(round(height * scale), old_height), 1)
    cut_width = max(min(round(width * scale), old_width), 1)
    top, left = (old_height - cut_height) // 2, (old_width - cut_width) // 2
    cut = frame[top : top + cut_height, left : left + cut_width]
    if (cut_height, cut_width) == (height, width):
        return cut.contiguous()
    planes = cut.permute(2, 0, 1).unsqueeze(0).float()
    planes = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return planes.squeeze(0).permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).contiguous()


def write_video(path: str | Path, frames: Iterable[Tensor], fps: Fraction | float) -> None:
    """Writes an mp4 file (H.264, yuv420p, so that every player shows it); whole or not at all.

    Args:
        path: Ends in ``.mp4``; its folder exists.
        frames: (T, H, W, 3), or any iterable of (H, W, 3); uint8, RGB; all of one size, H and W even.
        fps: Frames per second.

    Raises:
        InvalidInput: If there is no frame, or a frame of an odd or another size, or another dtype.
        MissingPackage: If PyAV is not installed.
    """
    av = require("av", "writing a video")
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise InvalidInput(f"video {path}: got a name ending in {path.suffix!r}, expected '.mp4'")
    if not path.parent.is_dir():
        raise InvalidInput(f"video {path}: the folder {path.parent} does not exist")
    with written_whole(path) as temporary, av.open(str(temporary), mode="w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(65535))
                stream.height, stream.width = _even_size(frame)
                stream.pix_fmt = "yuv420p"
                stream.options = {
                    "crf": "14"
                }  # hardly visible loss; the default of 23 blurs small differences
            _check_frame(frame, stream.height, stream.width)
            picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(picture))
        if stream is None:
            raise InvalidInput(f"video {path}: got no frame, expected at least one")
        container.mux(stream.encode(None))


class Turn(NamedTuple):
    """How the pixels of a file become a picture: rows and columns change places, then sides do."""

    aside: bool = False
    upside_down: bool = False
    mirrored: bool = False

    def apply(self, pixels: Tensor) -> Tensor:
        """Return the picture (H, W, 3)."""
        if self.aside:
            pixels = pixels.transpose(0, 1)
        sides = [side for side, flipped in enumerate(self[1:]) if flipped]
        return pixels.flip(sides) if sides else pixels.contiguous()


def turn_of(frame: Any) -> Turn:
    """Read the display matrix of a frame, to the nearest quarter turn.

    It is [[a, b, u], [c, d, v], [x, y, w]], 32-bit numbers in the order of this machine: a pixel at (p, q) is
    shown at (a p + c q, b p + d q), but for a shift.
    """
    from av.sidedata.sidedata import Type

    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return Turn()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    aside = abs(b) + abs(c) > abs(a) + abs(d)
    column, row = (c, b) if aside else (a, d)
    return Turn(aside, row < 0, column < 0)


def picture_of(frame: Any) -> Tensor:
    """Return a decoded frame as it is seen: (H, W, 3), uint8, RGB, upright."""
    return turn_of(frame).apply(torch.from_numpy(frame.to_ndarray(format="rgb24")))


def _even_size(frame: Tensor) -> tuple[int, int]:
    height, width = frame.shape[:2]
    if height % 2 or width % 2:
        raise InvalidInput(f"video frames: got a size of {width}x{height}, expected an even width and height")
    return height, width


def _check_frame(frame: Tensor, height: int, width: int) -> None:
    if frame.dtype != torch.uint8 or tuple(frame.shape) != (height, width, 3):
        raise InvalidInput(
            f"video frames: got {frame.dtype} {tuple(frame.shape)}, expected torch.uint8 {(height, width, 3)}"
        )


def rate_of(stream: Any) -> Fraction:
    """Return the average frames per second; 25 where the file does not say."""
    rate = stream.average_rate or stream.guessed_rate or _FALLBACK_FPS
    return Fraction(rate)


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file for decoding; gives the container and its first video stream.

    What PyAV raises, also while frames are decoded in the block, becomes one sentence.
    """
    av = require("av", "reading a video")
    if path.is_dir():
        raise InvalidInput(f"video {path}: is a folder, expected a file")
    if not path.is_file():
        raise InvalidInput(f"video {path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InvalidInput(f"{path}: holds no video, expected a video file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        reason = (error.strerror or str(error)).strip()
        raise InvalidInput(f"{path}: cannot be read as a video ({reason})") from error
