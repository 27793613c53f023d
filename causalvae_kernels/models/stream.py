"""`encode_stream` and `decode_stream`: a video of any length through an adapted model, chunk by chunk.

A stream is an iterator that computes one chunk whenever it is asked for the next item. Its state (the caches
of the model, frames that do not fill a chunk yet) is its own: the model keeps nothing, and several streams
may use it in turns. No grad mode is set: each chunk is computed under that of the code that asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import memory
from ..core.checks import check_count
from ..core.errors import InvalidInput
from ..temporal import frame_rule, pad_frames
from ..temporal.chunk_feed import ChunkFeed
from ..temporal.schedule import frame_chunks, latent_chunks, latents_of, padded_length
from .frames import check_made


@dataclass(frozen=True)
class ChunkCodec:
    """How the models of a family run one chunk.

    Attributes:
        encode: (model, frames, caches) to a posterior with `mode()` and `sample(generator)`. `caches` is a
            dictionary, empty for the first chunk, in which the model's state is replaced by the new one.
        decode: (model, latents, caches) to frames.
        sizes: The model's frames per chunk, and latents per chunk.
        channels: The model's channels of frames, and of latents.
    """

    encode: Callable[[nn.Module, Tensor, dict[Any, Any]], Any]
    decode: Callable[[nn.Module, Tensor, dict[Any, Any]], Tensor]
    sizes: Callable[[nn.Module], tuple[int, int]]
    channels: Callable[[nn.Module], tuple[int, int]]


class Stream(Iterator[Tensor]):
    """Tensors that are computed one by one, as they are asked for.

    Also a context manager, which closes it. When it is closed, dropped or exhausted, or has raised, nothing
    is left of it: caches and buffered frames are freed, and the input is closed too, if it has a `close` (a
    generator, another stream).
    """

    # Until the stream has begun, and after its end.
    _feed: ChunkFeed | None = None

    def __init__(self, call: str, model: nn.Module, link: Any, codec: ChunkCodec, feed: ChunkFeed) -> None:
        """Begin a stream; nothing is computed yet."""
        self._call, self._model, self._link, self._codec = call, model, link, codec
        self._caches: dict[Any, Any] = {}
        self._num_frames: int | None = None
        self._feed = feed

    @property
    def num_frames(self) -> int | None:
        """How many frames the video has: as given, else None until the end of the input is seen."""
        return self._num_frames

    def __next__(self) -> Tensor:
        """Compute the next chunk."""
        if self._feed is None:
            raise StopIteration
        try:
            out = self._step(self._feed)
        except BaseException:
            self.close()
            raise
        if out is None:
            self.close()
            raise StopIteration
        return out

    def close(self) -> None:
        """End the stream and free what it holds. Doing it twice is harmless."""
        feed, self._feed = self._feed, None
        if feed is not None:
            self._caches.clear()
            feed.close()

    def __enter__(self) -> Stream:
        """Return the stream."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __del__(self) -> None:
        """Close it: the input may be in other hands."""
        self.close()

    def _step(self, feed: ChunkFeed) -> Tensor | None:
        raise NotImplementedError

    def _check_active(self) -> None:
        if not self._link.active:
            raise InvalidInput(
                f"{self._call}: the swap was restored while the stream was open; swap again and start anew"
            )


class LatentStream(Stream):
    """What `encode_stream` returns: latents, shape (B, C, l, h, w), chunk by chunk."""

    def __init__(
        self, model: nn.Module, link: Any, codec: ChunkCodec, frames: Any, num_frames: int | None, draw: Any
    ) -> None:
        """Check what can be checked before any work."""
        self._ratio = frame_rule(model).temporal_compression_ratio
        lengths = frame_chunks(codec.sizes(model)[0], self._ratio, num_frames)
        feed = ChunkFeed("encode_stream", "frames", frames, lengths, num_frames, codec.channels(model)[0])
        super().__init__("encode_stream", model, link, codec, feed)
        self._num_frames, self._draw = num_frames, draw

    def _step(self, feed: ChunkFeed) -> Tensor | None:
        chunk = feed.take()
        if feed.ended:
            self._num_frames = feed.seen
        if chunk is None:
            return None
        self._check_active()
        first = not self._caches
        length = padded_length(chunk.shape[2], self._ratio, first=first)
        posterior = self._codec.encode(self._model, pad_frames(chunk, length), self._caches)
        latents = self._draw(posterior)
        expected = (length - first) // self._ratio + first
        check_made(self._call, length, "frames", latents.shape[2], "latents", expected)
        return latents


class FrameStream(Stream):
    """What `decode_stream` returns: frames, shape (B, 3, t, H, W), chunk by chunk."""

    def __init__(
        self, model: nn.Module, link: Any, codec: ChunkCodec, latents: Any, num_frames: int | None
    ) -> None:
        """Check what can be checked before any work."""
        self._ratio = frame_rule(model).temporal_compression_ratio
        # Only a count that is still open needs to be asked for again, at the end.
        self._counting = latents if num_frames is None and hasattr(latents, "num_frames") else None
        if self._counting is not None and latents.num_frames is not None:
            num_frames, self._counting = (
                check_count("decode_stream", "latents.num_frames", latents.num_frames),
                None,
            )
        total = None if num_frames is None else latents_of(num_frames, self._ratio)
        lengths = latent_chunks(codec.sizes(model)[1], total)
        feed = ChunkFeed(
            "decode_stream", "latents", latents, lengths, total, codec.channels(model)[1], num_frames
        )
        super().__init__("decode_stream", model, link, codec, feed)
        self._num_frames, self._made = num_frames, 0

    def _step(self, feed: ChunkFeed) -> Tensor | None:
        chunk = feed.take(look_ahead=self._counting is not None)
        if self._counting is not None and feed.ended:
            found, self._counting = self._counting.num_frames, None
            if found is not None and feed.seen:
                self._num_frames = check_count("decode_stream", "latents.num_frames", found)
                feed.check_total(latents_of(found, self._ratio), found)
        if chunk is None:
            self._num_frames = self._made
            return None
        self._check_active()
        lead = (self._ratio - 1) * (not self._caches)
        frames = self._codec.decode(self._model, chunk, self._caches)
        expected = self._ratio * chunk.shape[2] - lead
        check_made(self._call, chunk.shape[2], "latents", frames.shape[2], "frames", expected)
        if self._num_frames is not None:
            frames = memory.cut(frames, 2, 0, min(frames.shape[2], self._num_frames - self._made))
        self._made += frames.shape[2]
        return frames

    def close(self) -> None:
        """End the stream and free what it holds. Doing it twice is harmless."""
        self._counting = None
        super().close()


def encode_stream(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    frames: Iterable[Tensor],
    *,
    num_frames: int | None = None,
    sample_posterior: bool = False,
    generator: torch.Generator | None = None,
) -> LatentStream:
    """Encode frames as they come; at most a chunk of them and one item is held.

    The end of the video is padded with copies of its last frame, up to a whole latent. With
    `sample_posterior`, noise is drawn chunk by chunk: not the numbers of one call. Memory is constant where
    no gradients are recorded: use `torch.no_grad()` around the loop. With tiling, the state of every tile is
    kept.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family.
        frames: Tensors of shape (B, C, t, H, W), any t, all else equal.
        num_frames: How many frames there are in all. With it, the chunks are those of one call of `encode`,
            where the first chunk takes what does not divide, and so are the numbers. Without, CogVideoX's
            chunks are of 9, 8, 8, … frames. Wan's are of 5, 4, 4, … in both cases, as in one call.
        sample_posterior: Draw latents, rather than take the mode.
        generator: Of random numbers.

    Returns:
        An iterator of latents, shape (B, C, l, h, w), the dtype of the model. Its `num_frames` says how many
        frames there are: as given, else None until all have been seen.

    Raises:
        InvalidInput: The swap was made without `frames="any"` or was restored, before or meanwhile;
            `num_frames` is not positive, or not the number of frames (too many: as soon as they are seen; too
            few: at the end); an item does not fit the first one.
    """
    _check("encode_stream", link, codec, num_frames)

    def draw(posterior: Any) -> Tensor:
        # The mode is a view of what is twice as large.
        return posterior.sample(generator) if sample_posterior else posterior.mode().clone()

    return LatentStream(model, link, codec, frames, num_frames, draw)


def decode_stream(
    model: nn.Module,
    link: Any,
    codec: ChunkCodec | None,
    latents: Iterable[Tensor],
    *,
    num_frames: int | None = None,
) -> FrameStream:
    """Decode latents as they come; at most a chunk of them and one item is held.

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family.
        latents: Tensors of shape (B, C, l, h, w), any l, all else equal.
        num_frames: How many frames to return in all; default: `latents.num_frames` if there is such an
            attribute (what `encode_stream` returns has it), which is read at the beginning and, if it is None
            then, at the end; else all that the latents hold (4L-3). If it is known at the
            beginning, the chunks are those of one call of `decode`, where the first chunk takes what does not
            divide, and so are the numbers. Else, CogVideoX's chunks are of 3, 2, 2, … latents. Wan's latents
            are decoded one by one in both cases, as in one call.

    Returns:
        An iterator of frames, shape (B, 3, t, H, W), the dtype of the model. Its `num_frames` is the number
        of frames: as given, else None until the end of the latents is seen.

    Raises:
        InvalidInput: As `encode_stream`; the latents are not as many as `num_frames` frames need.
    """
    _check("decode_stream", link, codec, num_frames)
    return FrameStream(model, link, codec, latents, num_frames)


def _check(call: str, link: Any, codec: ChunkCodec | None, num_frames: int | None) -> None:
    if link.frames != "any":
        raise InvalidInput(f'{call}: this swap keeps diffusers\' counts; call swap(vae, frames="any")')
    if codec is None:
        raise InvalidInput(
            f"{call}: there is no stream for the models of this family; encode and decode take any number of "
            "frames in one call"
        )
    if not link.active:
        raise InvalidInput(f"{call}: this swap was restored; call swap() again")
    if num_frames is not None:
        check_count(call, "num_frames", num_frames)
