"""Stream a video file through a VAE into another file, in constant memory: stream_file.py [INPUT [OUTPUT]].

Without arguments a short clip is made first. The weights are the demo's in a source tree, else random.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.data.video import iter_frames, probe, write_video
from causalvae_kernels.demo.vae import small_random_vae, trained_vae

SIZE = (96, 64)  # width and height: small, so that it takes seconds; multiples of 8


def made_clip(path: Path, num_frames: int = 20) -> Path:
    """Write a clip of a bright square that moves over a gradient."""
    width, height = SIZE
    background = torch.linspace(0, 160, width).expand(height, width)
    frames = background.to(torch.uint8).expand(num_frames, 3, height, width).movedim(1, -1).clone()
    for index, frame in enumerate(frames):
        frame[20:44, 2 * index : 2 * index + 24] = 230
    write_video(path, frames, fps=10)
    return path


def pieces(path: Path, size: int = 4) -> Iterator[Tensor]:
    """Give a file's frames as the VAE takes them: (1, 3, t, H, W), pixels in [-1, 1], `size` at a time."""
    held = []
    for frame in iter_frames(path, size=SIZE):
        held.append(frame)
        if len(held) == size:
            yield to_video(held)
            held = []
    if held:
        yield to_video(held)


def to_video(frames: list[Tensor]) -> Tensor:
    """Return pictures (H, W, 3) of uint8 as a video."""
    return torch.stack(frames).permute(3, 0, 1, 2).unsqueeze(0).float() / 127.5 - 1


def to_pictures(video: Tensor) -> Tensor:
    """Return a video as pictures (T, H, W, 3) of uint8."""
    return ((video[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def stream(source: Path, target: Path) -> int:
    """Reconstruct `source` into `target`; return the number of frames.

    The file is read, encoded, decoded and written chunk by chunk, in the same memory for any length.
    """
    try:
        vae = trained_vae()
    except InvalidInput:
        vae = small_random_vae()
    count = 0

    def pictures() -> Iterator[Tensor]:
        nonlocal count
        for frames in handle.decode_stream(handle.encode_stream(pieces(source))):
            count += frames.shape[2]
            yield from to_pictures(frames)

    with torch.no_grad(), swap(vae, frames="any") as handle:
        write_video(target, pictures(), probe(source).fps)
    return count


def main(arguments: list[str] | None = None) -> None:
    """Stream the file that is named, or one that is made."""
    parser = argparse.ArgumentParser(description="Stream a video file through a VAE into another file.")
    parser.add_argument("source", nargs="?", type=Path)
    parser.add_argument("target", nargs="?", type=Path, default=Path("streamed.mp4"))
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        source = asked.source or made_clip(Path(folder, "made.mp4"))
        print(f"{stream(source, asked.target)} frames written to {asked.target}")


if __name__ == "__main__":
    main()
