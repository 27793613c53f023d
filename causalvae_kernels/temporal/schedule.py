"""Chunk schedules as numbers: how many frames, or latents, a model with chunks is given at a time.

CogVideoX runs in chunks of 8 frames, or 2 latents, and the first chunk takes what does not divide. Where the
length is not known, the remainder can only stand at the end: 9, 8, 8, … frames and 3, 2, 2, … latents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..core.errors import InvalidInput


@dataclass(frozen=True)
class ChunkLengths:
    """How many frames, or latents, each chunk takes.

    Attributes:
        first: The first chunk.
        size: Each of the others.
        count: How many chunks there are; None: without end.
        missing: So many fewer in the last one.
    """

    first: int
    size: int
    count: int | None = None
    missing: int = 0

    def __getitem__(self, index: int) -> int:
        """Return what chunk `index` takes; 0 behind the last one."""
        if self.count is not None and index >= self.count:
            return 0
        length = self.size if index else self.first
        return length - self.missing if index + 1 == self.count else length

    def __iter__(self) -> Iterator[int]:
        """Yield them, without end if their number is not known."""
        index = 0
        while self[index]:
            yield self[index]
            index += 1


def windows(length: int, step: int, window: int, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (size, how many) of windows that begin every `step`; the end cuts off the last ones.

    Whole windows are one entry, so that a length of any size costs the same.

    Args:
        length: Of what they are cut from.
        step: From one to the next.
        window: Size of a whole one.
        stop: Where no window begins any more; default: `length`.
    """
    count = -(-max(length if stop is None else stop, 0) // step)
    whole = min(max((length - window) // step + 1, 0), count)
    if whole:
        yield window, whole
    for index in range(whole, count):
        yield length - index * step, 1


def latents_of(num_frames: int, ratio: int) -> int:
    """Return how many latents `num_frames` need: the first stands for one frame, others for `ratio`."""
    return 1 + -(-(num_frames - 1) // ratio)


def padded_length(num_frames: int, ratio: int, *, first: bool) -> int:
    """Return the least number of frames, `num_frames` or more, that a chunk can hold.

    Args:
        num_frames: Frames at hand, at least 1.
        ratio: Frames per latent.
        first: Whether the video begins with the chunk: ratio*k+1 frames, else ratio*k.
    """
    return -(-(num_frames - first) // ratio) * ratio + first


def latent_chunks(size: int, total: int | None = None) -> ChunkLengths:
    """Return how many latents each chunk takes.

    Args:
        size: Of a chunk of the model.
        total: Of all chunks: the first one takes the remainder. None, where it is not known: size+1 and then
            `size` without end, so that the last chunk may find fewer.
    """
    if total is None:
        return ChunkLengths(size + 1, size)
    count = max(total // size, 1)
    return ChunkLengths(total - (count - 1) * size, size, count)


def frame_chunks(size: int, ratio: int, total: int | None = None) -> ChunkLengths:
    """Return how many frames each chunk takes, before it is padded to its `padded_length`.

    Args:
        size: Of a chunk of the model.
        ratio: Frames per latent.
        total: Of all chunks; the last one is shorter by what it will be padded with. None: as in
            `latent_chunks`.

    Raises:
        InvalidInput: Chunks after the first one would not be whole latents.
    """
    padded = None if total is None else padded_length(total, ratio, first=True)
    if size % ratio and (padded is None or padded >= 2 * size):
        raise InvalidInput(
            f"frame_chunks: chunks of {size} frames are no whole latents of {ratio} frames, expected a "
            f"multiple of {ratio} (CogVideoX: num_sample_frames_batch_size)"
        )
    if padded is None:
        return latent_chunks(size)
    return replace(latent_chunks(size, padded), missing=padded - total)
