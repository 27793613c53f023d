"""What models do to counts that cut a clip into segments, clips or windows of fixed length."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .frame_codecs import Codec
from .schedule import windows

Half = Callable[[int], int | None]


@dataclass(frozen=True)
class AllegroCodec(Codec):
    """Windows in time that must cover the clip: what is outside of them comes back as zeros."""

    window: int
    stride: int
    tiled: bool = True

    time_dim = 1

    @property
    def refusal(self) -> str:
        """Without tiling, diffusers implements neither direction."""
        return "" if self.tiled else "before its enable_tiling() is called"

    def encode(self, num_frames: int) -> int | None:
        """A number of windows that is negative fails; one that is zero does not."""
        fails = not self.tiled or num_frames - self.window < -self.stride
        return None if fails else num_frames // self.ratio

    def decode(self, num_latents: int) -> int | None:
        """As many frames as the latents stand for."""
        fails = not self.tiled or num_latents - self.window // self.ratio < -(self.stride // self.ratio)
        return None if fails else num_latents * self.ratio

    def aligned(self, num_frames: int) -> bool:
        """The windows must cover the clip."""
        return num_frames >= self.window and (num_frames - self.window) % self.stride == 0


@dataclass(frozen=True)
class KVAECodec(Codec):
    """Segments of 16 frames after the first: later ones must halve evenly, and a lone latent is not doubled.

    Attributes:
        halvings: Levels that compress time.
        compression: The setting by which segments of latents are cut.
    """

    halvings: int
    compression: int

    # The default argument of `AutoencoderKLKVAEVideo._encode` and `_decode`; no setting.
    segment = 16

    def encode(self, num_frames: int) -> int | None:
        """Halve each segment."""
        return _segments(num_frames, self.segment + 1, self.segment, self.halvings, _first_half, self._half)

    def decode(self, num_latents: int) -> int | None:
        """Double each segment."""
        assumed = self.compression * (num_latents - 1) + 1
        first = min(assumed, self.segment + 1)
        others = windows(assumed - first, self.segment, self.segment)
        latents = frames = 0
        for size, count, keeps in ((first, 1, 1), *((*other, 0) for other in others)):
            length = math.ceil(size / self.compression)
            latents += count * length
            for _ in range(self.halvings):
                length = 1 if length == 1 else 2 * length - keeps
            frames += count * length
        return frames if latents == num_latents else None

    @staticmethod
    def _half(length: int) -> int | None:
        return None if length % 2 else length // 2


@dataclass(frozen=True)
class Kandinsky6Codec(Codec):
    """Segments as in KVAE, but a lone latent is doubled, and three frames become two by broadcasting."""

    halvings: int
    latents_per_segment: int

    # `SEGMENT_FRAMES` of the module; no setting.
    segment = 16

    def encode(self, num_frames: int) -> int | None:
        """Halve each segment."""
        return _segments(num_frames, self.segment + 1, self.segment, self.halvings, _first_half, self._half)

    def decode(self, num_latents: int) -> int | None:
        """Double all but the first latent."""
        return 1 + (num_latents - 1) * self.ratio if self.latents_per_segment else None

    @staticmethod
    def _half(length: int) -> int | None:
        if length == 3:
            return 2
        return None if length % 2 else length // 2


@dataclass(frozen=True)
class MiniMaxH3Codec(Codec):
    """Clips of fixed length, the last one filled up; latents at the end are dropped, clips overlap and blend.

    Attributes:
        factors: The encoder's steps.
        clip_frames: Frames of a clip.
        dropped: Latents that are dropped at the end.
        clip_latents: Latents of a clip.
        overlap: Latents of the next clip that are decoded with one.
        pre_padding: Frames that a clip's first latent stands for in excess.
    """

    factors: tuple[int, ...]
    clip_frames: int
    dropped: int
    clip_latents: int
    overlap: int
    pre_padding: int

    def encode(self, num_frames: int) -> int | None:
        """One frame goes alone; else whole clips."""
        if num_frames == 1:
            return self._clip(1)
        latents = -(-num_frames // self.clip_frames) * self._clip(self.clip_frames) - self.dropped
        return latents if latents > 0 else None

    def decode(self, num_latents: int) -> int | None:
        """Clips, the frames of the last one's overlap, and off with what filled it up."""
        drops = self.dropped > 0
        filled = -(num_latents + self.dropped) % self.clip_latents
        available = num_latents + filled
        total = tail = 0
        last = available + self.dropped - drops * self.clip_latents
        whole = self.clip_latents * self.ratio
        for size, count in windows(available, self.clip_latents, self.clip_latents + self.overlap, last):
            frames = size * self.ratio
            total += count * max(min(frames, whole) - self.pre_padding, 0)
            tail = max(min(frames - whole, whole) - self.pre_padding, 0) if drops else 0
        short = self.clip_frames % self.ratio
        for index in range(num_latents, available):
            tail -= short if short and index % self.clip_latents == 0 else self.ratio
        return total + tail if total and total + tail > 0 else None

    def _clip(self, frames: int) -> int:
        for factor in self.factors:
            frames = (frames - 1) // factor + 1
        return frames


def _segments(total: int, first: int, size: int, times: int, first_half: Half, half: Half) -> int | None:
    """Return what segments halve to, the first one in its own way."""
    made = 0
    beginning = min(total, first)
    others = ((*other, half) for other in windows(total - beginning, size, size))
    for length, count, halve in ((beginning, 1, first_half), *others):
        for _ in range(times):
            length = halve(length) if length else None
        if length is None:
            return None
        made += count * length
    return made


def _first_half(length: int) -> int | None:
    """Return what a first segment halves to; a pair cannot be pooled without its first frame."""
    return None if length == 2 else (length + 1) // 2
