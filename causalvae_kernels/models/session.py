"""`encode_session` and `decode_session`: a video of any length through an adapted model, as its parts come.

A session is given frames, or latents, and returns what can be computed of them. Its state (the caches of the
model, what does not fill a chunk yet) is its own: the model keeps nothing, and any number of sessions may use
it, in turns or in threads. No grad mode is set: each chunk is computed under that of the code that asks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..core import memory
from ..core.checks import check_count
from ..core.errors import InvalidInput
from ..temporal import frame_rule, pad_frames
from ..temporal.chunk_feed import ChunkQueue
from ..temporal.schedule import frame_chunks, latent_chunks, latents_of, padded_length
from .frames import check_made


def one_by_one(*_: Any) -> None:
    """Say that chunks go one at a time."""


@dataclass(frozen=True)
class ChunkCodec:
    """How the models of a family run one chunk.

    Attributes:
        encode: (model, frames, caches) to a posterior with `mode()` and `sample(generator)`. `caches` is a
            dictionary, empty for the first chunk, in which the model's state is replaced by the new one.
        decode: (model, latents, caches) to frames.
        sizes: The model's frames per chunk, and latents per chunk.
        channels: The model's channels of frames, and of latents.
        spatial_ratio: The model's pixels per latent pixel, in each direction.
        per_pass: (model, link, "encode" or "decode", input) to how many chunks may go at a time, if all of
            the input is there, by an argument `per_pass` of `encode` and `decode`; None: one.
    """

    encode: Callable[[nn.Module, Tensor, dict[Any, Any]], Any]
    decode: Callable[[nn.Module, Tensor, dict[Any, Any]], Tensor]
    sizes: Callable[[nn.Module], tuple[int, int]]
    channels: Callable[[nn.Module], tuple[int, int]]
    spatial_ratio: Callable[[nn.Module], int]
    per_pass: Callable[[nn.Module, Any, str, Tensor], int | None] = one_by_one


S = TypeVar("S", bound="Session")


class Session:
    """A video that is encoded or decoded as its parts come.

    Also a context manager, which closes it. When it is closed, or a chunk has failed or was interrupted,
    nothing is left of it, and `push` refuses more.

    Attributes:
        queue: What does not fill a chunk yet.
    """

    _is_open = False

    def __init__(
        self,
        call: str,
        model: nn.Module,
        link: Any,
        codec: ChunkCodec,
        queue: ChunkQueue,
        per_pass: int | None,
    ) -> None:
        """Begin a session; nothing is computed yet."""
        self._call, self._model, self._link, self._codec = call, model, link, codec
        self._options = {} if per_pass is None else {"per_pass": per_pass}
        self.queue, self._caches = queue, {}
        self._ratio = frame_rule(model).temporal_compression_ratio
        self._num_frames: int | None = None
        self._blank: Tensor | None = None  # what `push` returns while nothing is ready
        self._is_open = True

    @property
    def num_frames(self) -> int | None:
        """How many frames the video has: as given, else None until `finish`."""
        return self._num_frames

    def push(self, part: Tensor) -> Tensor:
        """Take the next part of the video; return what can be computed now, which may be of no frames.

        Args:
            part: Shape (B, C, t, H, W), any t, all else as in the first part. It is not changed, and not
                kept unless it does not fill a chunk.

        Raises:
            InvalidInput: The session is closed, the swap was restored, the part does not fit, or there is
                more than `num_frames` said. The session stays as it was.
        """
        self._check_open()
        self._check_active()
        self.queue.put(part)
        self._blank = self._blank_like(part) if self._blank is None else self._blank
        made = self._run()
        self.queue.let_go()
        return made

    def finish(self) -> Tensor:
        """The video is complete: return the rest of it, and close the session.

        Raises:
            InvalidInput: The session is closed, nothing was pushed, or less than `num_frames` said. The
                session stays as it was.
        """
        self._check_open()
        self._check_active()
        if self._blank is None:
            raise InvalidInput(f"{self._call}: finish() without a push(), expected at least one frame")
        self.queue.end()
        made = self._run()
        self.close()
        return made

    def copy(self: S) -> S:
        """Return a session that goes on from here by itself: to try out several continuations.

        A generator is copied with its state.
        """
        self._check_open()
        other = copy.copy(self)
        other.queue, other._caches = self.queue.copy(), _copied(self._caches)
        return other

    def close(self) -> None:
        """Free what the session holds. Doing it twice is harmless."""
        if self._is_open:
            self._is_open = False
            self._caches.clear()
            self.queue.clear()

    def __enter__(self: S) -> S:
        """Return the session."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self) -> Tensor:
        """Return all that can be computed now."""
        made = []
        while self.queue.is_ready():
            chunk = self.next_chunk()
            if chunk is None:
                break
            made.append(chunk)
        return torch.cat(made, dim=2) if len(made) > 1 else made[0] if made else self._blank

    def next_chunk(self) -> Tensor | None:
        """Compute the next chunk, which is ready; None at the end."""
        try:
            return self._step()
        except BaseException:
            self.close()
            raise

    def _step(self) -> Tensor | None:
        raise NotImplementedError

    def _blank_like(self, part: Tensor) -> Tensor:
        raise NotImplementedError

    def _check_open(self) -> None:
        if not self._is_open:
            raise InvalidInput(f"{self._call}: this session is closed; begin another one")

    def _check_active(self) -> None:
        if not self._link.active:
            raise InvalidInput(
                f"{self._call}: the swap was restored while it was open; swap again and start anew"
            )


class EncodeSession(Session):
    """What `encode_session` returns: frames (B, C, t, H, W) in, latents (B, C, l, h, w) out."""

    def __init__(
        self,
        call: str,
        model: nn.Module,
        link: Any,
        codec: ChunkCodec,
        num_frames: int | None,
        sample_posterior: bool,
        generator: torch.Generator | None,
        per_pass: int | None = None,
    ) -> None:
        """Check what can be checked before any work."""
        ratio = frame_rule(model).temporal_compression_ratio
        lengths = frame_chunks(codec.sizes(model)[0] * (per_pass or 1), ratio, num_frames)
        queue = ChunkQueue(call, "frames", lengths, num_frames, codec.channels(model)[0])
        super().__init__(call, model, link, codec, queue, per_pass)
        self._num_frames, self._samples, self._generator = num_frames, sample_posterior, generator

    def copy(self) -> EncodeSession:
        """Return a session that goes on from here by itself; a generator is copied with its state."""
        other = super().copy()
        if self._generator is not None:
            other._generator = self._generator.clone_state()
        return other

    def _step(self) -> Tensor | None:
        chunk = self.queue.take()
        if self.queue.ended:
            self._num_frames = self.queue.seen
        if chunk is None:
            return None
        self._check_active()
        first = not self._caches
        length = padded_length(chunk.shape[2], self._ratio, first=first)
        posterior = self._codec.encode(self._model, pad_frames(chunk, length), self._caches, **self._options)
        # The mode is a view of what is twice as large.
        latents = posterior.sample(self._generator) if self._samples else posterior.mode().clone()
        expected = (length - first) // self._ratio + first
        check_made(self._call, length, "frames", latents.shape[2], "latents", expected)
        return latents

    def _blank_like(self, part: Tensor) -> Tensor:
        ratio, channels = self._codec.spatial_ratio(self._model), self._codec.channels(self._model)[1]
        return part.new_empty((part.shape[0], channels, 0, part.shape[3] // ratio, part.shape[4] // ratio))


class DecodeSession(Session):
    """What `decode_session` returns: latents (B, C, l, h, w) in, frames (B, C, t, H, W) out."""

    def __init__(
        self,
        call: str,
        model: nn.Module,
        link: Any,
        codec: ChunkCodec,
        num_frames: int | None,
        per_pass: int | None = None,
    ) -> None:
        """Check what can be checked before any work."""
        ratio = frame_rule(model).temporal_compression_ratio
        total = None if num_frames is None else latents_of(num_frames, ratio)
        lengths = latent_chunks(codec.sizes(model)[1] * (per_pass or 1), total)
        queue = ChunkQueue(call, "latents", lengths, total, codec.channels(model)[1], num_frames)
        super().__init__(call, model, link, codec, queue, per_pass)
        self._num_frames, self._made = num_frames, 0

    def know(self, num_frames: int) -> None:
        """Say how many frames there are, once all latents have come, and before the last are decoded."""
        self._num_frames = check_count(self._call, "latents.num_frames", num_frames)
        self.queue.check_total(latents_of(num_frames, self._ratio), num_frames)

    def _step(self) -> Tensor | None:
        chunk = self.queue.take()
        if chunk is None:
            self._num_frames = self._made
            return None
        self._check_active()
        lead = (self._ratio - 1) * (not self._caches)
        frames = self._codec.decode(self._model, chunk, self._caches, **self._options)
        expected = self._ratio * chunk.shape[2] - lead
        check_made(self._call, chunk.shape[2], "latents", frames.shape[2], "frames", expected)
        if self._num_frames is not None:
            frames = memory.cut(frames, 2, 0, min(frames.shape[2], self._num_frames - self._made))
        self._made += frames.shape[2]
        return frames

    def _blank_like(self, part: Tensor) -> Tensor:
        ratio, channels = self._codec.spatial_ratio(self._model), self._codec.channels(self._model)[0]
        return part.new_empty((part.shape[0], channels, 0, part.shape[3] * ratio, part.shape[4] * ratio))


def encode_session(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    *,
    num_frames: int | None = None,
    sample_posterior: bool = False,
    generator: torch.Generator | None = None,
    call: str = "encode_session",
    per_pass: int | None = None,
) -> EncodeSession:
    """Begin to encode a video that comes in parts; less than a chunk of it is held.

    The end of the video is padded with copies of its last frame, up to a whole latent. With
    `sample_posterior`, noise is drawn chunk by chunk: not the numbers of one call. Memory is constant where
    no gradients are recorded. With tiling, the state of every tile is kept. A session pickles,
    with its model.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family.
        num_frames: How many frames there are in all. With it, the chunks are those of one call of `encode`,
            where the first chunk takes what does not divide, and so are the numbers. Without, CogVideoX's
            chunks are of 9, 8, 8, … frames. Wan's are of 5, 4, 4, … in both cases, as in one call.
        sample_posterior: Draw latents, rather than take the mode.
        generator: Of random numbers.
        call: Who asks, for messages.
        per_pass: How many chunks go at a time; None: one.

    Raises:
        InvalidInput: The swap was made without `frames="any"` or was restored; the family has no chunks;
            `num_frames` is not positive.
    """
    codec = _check(call, link, codec, num_frames)
    return EncodeSession(call, model, link, codec, num_frames, sample_posterior, generator, per_pass)


def decode_session(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    *,
    num_frames: int | None = None,
    call: str = "decode_session",
    per_pass: int | None = None,
) -> DecodeSession:
    """Begin to decode latents that come in parts; less than a chunk of them is held.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family.
        num_frames: How many frames to return in all; default: all that the latents hold (4L-3). With it, the
            chunks are those of one call of `decode`, where the first chunk takes what does not divide, and so
            are the numbers. Else, CogVideoX's chunks are of 3, 2, 2, … latents. Wan's latents are decoded one
            by one in both cases.
        call: Who asks, for messages.
        per_pass: How many chunks go at a time; None: one.

    Raises:
        InvalidInput: As `encode_session`.
    """
    codec = _check(call, link, codec, num_frames)
    return DecodeSession(call, model, link, codec, num_frames, per_pass)


def _copied(state: Any) -> Any:
    """Return a state of a model in memory of its own."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)([_copied(item) for item in state])
    return copy.copy(state)


def _check(call: str, link: Any, codec: ChunkCodec | None, num_frames: int | None) -> ChunkCodec:
    if link.frames != "any":
        raise InvalidInput(f'{call}: this swap keeps diffusers\' counts; call swap(vae, frames="any")')
    if codec is None:
        what = call.rpartition("_")[2]
        raise InvalidInput(
            f"{call}: there is no {what} for the models of this family; encode and decode take any number of "
            "frames in one call"
        )
    if not link.active:
        raise InvalidInput(f"{call}: this swap was restored; call swap() again")
    if num_frames is not None:
        check_count(call, "num_frames", num_frames)
    return codec
