"""Video files of every kind that a data set holds, small, and some that are none."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from tests.demo.display_matrix import TURNS, set_display_matrix


def picture(index: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth frame (H, W, 3), uint8, which differs from that of every other index."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin((x * (c + 1) + y * (3 - c)) / 7 + index / 3 + seed) for c in range(3)]
    return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


def make_video(
    path: Path,
    frames: int = 9,
    size: tuple[int, int] = (32, 24),
    fps: int = 24,
    *,
    times: list[int] | None = None,
    audio: bool = False,
    codec: str = "h264",
    pix_fmt: str = "yuv420p",
    seed: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a clip.

    Args:
        path: Its suffix chooses the container.
        frames: How many.
        size: Width and height.
        fps: Frames per second.
        times: Of the frames, in milliseconds, for a rate that varies.
        audio: Whether there is a silent sound track.
        codec: Of the video.
        pix_fmt: yuv444p takes odd sizes.
        seed: Another one gives other pictures.
        options: Of the container.
    """
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        stream.options = {"preset": "ultrafast", "crf": "10"} if codec == "h264" else {}
        sound = container.add_stream("aac", rate=8000, layout="mono") if audio else None
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index, size[1], size[0], seed), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), "float32"), format="fltp", layout="mono")
            samples.sample_rate = 8000
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return path


def make_folder(folder: Path) -> dict[str, tuple[int, int, int] | None]:
    """Write one clip of each kind; return (frames, width, height) as seen by name, None for a broken one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "below").mkdir()
    make_video(folder / "plain.mp4", 9)
    make_video(folder / "below" / "sound.mp4", 16, audio=True)
    make_video(folder / "odd.mkv", 5, (33, 25), pix_fmt="yuv444p")
    make_video(folder / "one.mp4", 1)
    make_video(folder / "varies.mkv", 13, times=[40 * i + 7 * (i % 3) for i in range(13)])
    set_display_matrix(make_video(folder / "turned.mp4", 17), TURNS["rotated by 90"][0])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video at all\n" * 50)
    whole = make_video(folder / "cut.mp4", 17, (64, 48), options={"movflags": "faststart"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (folder / "notes.txt").write_text("left alone")
    return {
        "below/sound.mp4": (16, 32, 24),
        "cut.mp4": None,
        "empty.mp4": None,
        "odd.mkv": (5, 33, 25),
        "one.mp4": (1, 32, 24),
        "plain.mp4": (9, 32, 24),
        "text.mp4": None,
        "turned.mp4": (17, 24, 32),
        "varies.mkv": (13, 32, 24),
    }


def decoded(path: Path) -> torch.Tensor:
    """Return the frames (T, H, W, 3), uint8, as they are stored, by PyAV alone."""
    import av

    with av.open(str(path)) as container:
        return torch.stack(
            [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        )
