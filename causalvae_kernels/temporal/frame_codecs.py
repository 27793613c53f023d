"""What an encoder does to a number of frames and a decoder to a number of latents, as arithmetic.

One class per mechanism; `model_rules` fills them from the settings of a model. The numbers are those that
diffusers' models return, also where these lose frames or give too many: a test runs them for every count.
Models that cut a clip into segments stand in `segment_codecs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .schedule import windows


@dataclass(frozen=True)
class Codec:
    """What a model does to counts, all of them positive.

    Attributes:
        ratio: Frames per latent.
    """

    ratio: int

    # Why no count at all is taken, for a message.
    refusal = ""
    # The dimension of time in what the model's `decode` returns.
    time_dim = 2

    @property
    def lead(self) -> int:
        """Copies of the first frame that the model wants in front; its decoder drops as many."""
        return 0

    def encode(self, num_frames: int) -> int | None:
        """Return the latents that the encoder makes of `num_frames`; None if it refuses or fails."""
        raise NotImplementedError

    def decode(self, num_latents: int) -> int | None:
        """Return the frames that the decoder makes of `num_latents`; None if it refuses or fails."""
        raise NotImplementedError

    def aligned(self, num_frames: int) -> bool:
        """Tell whether every frame takes the path that was trained, and comes out in its place."""
        return True

    def adapted(self) -> Codec:
        """Return what the model does once it is adapted; most have nothing to adapt."""
        return self


class Step(NamedTuple):
    """The first frame stays, each `factor` further ones become one; `rest` is for those left over.

    Attributes:
        factor: Frames that become one.
        rest: "drop", "fill" (up to whole) or "refuse".
    """

    factor: int
    rest: str = "drop"

    def __call__(self, length: int | None) -> int | None:
        """Return the length after the step."""
        if length is None:
            return None
        whole, left = divmod(length - 1, self.factor)
        if left and self.rest == "refuse":
            return None
        return 1 + whole + (left > 0 and self.rest == "fill")


@dataclass(frozen=True)
class CausalCodec(Codec):
    """The whole clip at once, through steps; their inverse keeps the first frame too.

    Attributes:
        down: Steps of the encoder.
        up: Factors of the decoder.
        patch: Frames that are folded into channels before, and unfolded after.
    """

    down: tuple[Step, ...]
    up: tuple[int, ...]
    patch: int = 1

    def encode(self, num_frames: int) -> int | None:
        """Fold, then take the steps."""
        length = None if num_frames % self.patch else num_frames // self.patch
        for step in self.down:
            length = step(length)
        return length

    def decode(self, num_latents: int) -> int | None:
        """Double all but the first, then unfold."""
        return (1 + (num_latents - 1) * math.prod(self.up)) * self.patch


@dataclass(frozen=True)
class MochiCodec(CausalCodec):
    """Frames that the decoder makes in excess lead, and stay unless `drops_lead`."""

    drops_lead: bool = True
    framewise_encoding: bool = False

    def encode(self, num_frames: int) -> int | None:
        """Encode; frame by frame is not implemented in diffusers."""
        return None if self.framewise_encoding else super().encode(num_frames)

    def decode(self, num_latents: int) -> int | None:
        """Decode each latent to `ratio` frames."""
        return self.ratio * num_latents - (self.ratio - 1) * self.drops_lead

    def aligned(self, num_frames: int) -> bool:
        """Leading frames push the others out of place."""
        return self.drops_lead or self.ratio == 1


@dataclass(frozen=True)
class TiledCodec(Codec):
    """Another codec over overlapping windows in time, each one frame longer than `tile`.

    Attributes:
        inner: What happens within a window.
        encodes: Whether the encoder does so,
        decodes: and the decoder.
        assumed_ratio: The model's idea of its ratio, by which it lays the windows of latents.
        tile: Frames of a window; no more frames are no reason to tile.
        stride: Frames from window to window.
    """

    inner: Codec
    encodes: bool
    decodes: bool
    assumed_ratio: int
    tile: int
    stride: int

    def encode(self, num_frames: int) -> int | None:
        """Encode windows."""
        if not self.encodes or num_frames <= self.tile:
            return self.inner.encode(num_frames)
        step = self.stride // self.assumed_ratio
        made = self._windows(self.inner.encode, num_frames, self.stride, self.tile + 1, step)
        return made and min(made, (num_frames - 1) // self.assumed_ratio + 1)

    def decode(self, num_latents: int) -> int | None:
        """Decode windows."""
        tile, step = self.tile // self.assumed_ratio, self.stride // self.assumed_ratio
        if not self.decodes or num_latents <= tile:
            return self.inner.decode(num_latents)
        made = self._windows(self.inner.decode, num_latents, step, tile + 1, self.stride)
        return made and min(made, (num_latents - 1) * self.assumed_ratio + 1)

    def aligned(self, num_frames: int) -> bool:
        """Windows of frames and of latents must meet at the same places."""
        if num_frames <= self.tile or not (self.encodes or self.decodes):
            return self.inner.aligned(num_frames)
        return self.assumed_ratio == self.ratio and self.stride % self.ratio == 0

    @staticmethod
    def _windows(
        convert: Callable[[int], int | None], length: int, step: int, window: int, kept: int
    ) -> int | None:
        if step < 1:
            return None
        total = 1  # the first window has one more than the others
        for size, count in windows(length, step, window):
            made = convert(size)
            if made is None:
                return None
            total += count * min(made - 1, kept)
        return total


@dataclass(frozen=True)
class WanCodec(Codec):
    """One frame, then groups of four; frames that fill no group are dropped."""

    halvings: int

    def encode(self, num_frames: int) -> int | None:
        """Halve each group; one frame cannot be halved."""
        groups = (num_frames - 1) // 4
        return None if groups and self.halvings > 2 else 1 + groups * (4 >> self.halvings)

    def decode(self, num_latents: int) -> int | None:
        """Double all but the first latent."""
        return 1 + (num_latents - 1) * self.ratio


@dataclass(frozen=True)
class MagvitCodec(Codec):
    """One frame, then groups; each halving of a group drops an odd frame, and fails with one alone."""

    halvings: int
    doublings: int
    frames_per_group: int

    def encode(self, num_frames: int) -> int | None:
        """Halve each group."""
        group, total = self.frames_per_group, 1
        for size, count in windows(num_frames - 1, group, group):
            halved = size >> self.halvings
            if not halved:
                return None
            total += count * halved
        return total

    def decode(self, num_latents: int) -> int | None:
        """Double all but the first latent."""
        return 1 + (num_latents - 1) * 2**self.doublings


@dataclass(frozen=True)
class CogVideoXCodec(Codec):
    """Chunks, in which an odd length (more than one) at a resampler means: here the video begins."""

    frames_per_chunk: int
    latents_per_chunk: int

    def encode(self, num_frames: int) -> int | None:
        """Halve each chunk, odd ones but for their first frame."""
        first, others = _chunks(num_frames, self.frames_per_chunk)
        return self._halved(first) + others * self._halved(self.frames_per_chunk)

    def decode(self, num_latents: int) -> int | None:
        """Double each chunk, odd ones but for their first frame."""
        first, others = _chunks(num_latents, self.latents_per_chunk)
        return self._doubled(first) + others * self._doubled(self.latents_per_chunk)

    def aligned(self, num_frames: int) -> bool:
        """The first chunk, and no other, must look like a first one on every level."""
        if self.ratio == 1:
            return True
        first, others = _chunks(num_frames, self.frames_per_chunk)
        if (first - 1) % self.ratio or (others and self.frames_per_chunk % self.ratio):
            return False
        first, others = _chunks(self.encode(num_frames), self.latents_per_chunk)
        return first % 2 == 1 and not (others and self.latents_per_chunk % 2)

    def adapted(self) -> Codec:
        """Know the first chunk by its place."""
        return AdaptedCogVideoXCodec(self.ratio, self.frames_per_chunk)

    def _halved(self, length: int) -> int:
        for _ in range(halvings(self.ratio)):
            length = (length + 1) // 2
        return length

    def _doubled(self, length: int) -> int:
        for _ in range(halvings(self.ratio)):
            if length > 1:
                length = 2 * length - length % 2
        return length


@dataclass(frozen=True)
class AdaptedCogVideoXCodec(Codec):
    """CogVideoX that is told which chunk is the first: L latents decode to ratio*(L-1)+1 frames."""

    frames_per_chunk: int

    def encode(self, num_frames: int) -> int | None:
        """All chunks but the first, which takes the remainder, must be whole latents."""
        chunked = num_frames >= 2 * self.frames_per_chunk
        if (num_frames - 1) % self.ratio or (chunked and self.frames_per_chunk % self.ratio):
            return None
        return (num_frames - 1) // self.ratio + 1

    def decode(self, num_latents: int) -> int | None:
        """Any number of latents."""
        return self.ratio * (num_latents - 1) + 1


@dataclass(frozen=True)
class VidTokCodec(Codec):
    """Halvings that drop an odd frame; a causal model drops the first `ratio - 1` frames that it decodes.

    Attributes:
        halvings: Levels of the encoder that compress time.
        doublings: Levels of the decoder that expand it.
        causal: Whether the model is.
        latents_per_batch: What a model that is not causal decodes multiples of.
        tiled: Whether tiling is on, which also cuts time.
    """

    halvings: int
    doublings: int
    causal: bool
    latents_per_batch: int
    tiled: bool = False

    @property
    def lead(self) -> int:
        """What a causal model will drop; its `forward` adds these frames itself, `encode` does not."""
        return self.ratio - 1 if self.causal else 0

    def encode(self, num_frames: int) -> int | None:
        """One frame cannot be halved; tiles need the frames of a latent each."""
        if self.tiled and self.causal and self.ratio < num_frames < 2 * self.ratio:
            return None
        return num_frames >> self.halvings or None

    def decode(self, num_latents: int) -> int | None:
        """Double every latent."""
        if self.causal:
            return max(num_latents * 2**self.doublings - self.lead, 0) or None
        return num_latents // self.latents_per_batch * self.latents_per_batch * 2**self.doublings or None

    def aligned(self, num_frames: int) -> bool:
        """No frame may be dropped."""
        return num_frames % self.ratio == 0


def _chunks(total: int, size: int) -> tuple[int, int]:
    """Return the length of the first chunk, and how many of `size` follow (see `schedule.latent_chunks`)."""
    others = max(total // size, 1) - 1
    return total - others * size, others


def halvings(ratio: float) -> int:
    """Return how often a ratio can be halved; diffusers rounds the logarithm down."""
    return int(math.log2(ratio))
