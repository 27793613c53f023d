"""`encode_stream` and `decode_stream`: a video of any length through an adapted model, chunk by chunk.

A stream is an iterator over a session (`session.py`): it computes one chunk whenever it is asked for the next
item, and asks for no more input than that takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_count
from ..temporal.chunk_feed import ChunkFeed
from .session import ChunkCodec, DecodeSession, Session, decode_session, encode_session


class Stream(Iterator[Tensor]):
    """Tensors that are computed one by one, as they are asked for.

    Also a context manager, which closes it. When it is closed, dropped or exhausted, or has raised, nothing
    is left of it: caches and buffered frames are freed, and the input is closed too, if it has a `close` (a
    generator, another stream).
    """

    # Until the stream has begun, and after its end.
    _feed: ChunkFeed | None = None

    def __init__(self, session: Session, feed: ChunkFeed) -> None:
        """Begin a stream; nothing is computed yet."""
        self._session, self._feed = session, feed

    @property
    def num_frames(self) -> int | None:
        """How many frames the video has: as given, else None until the end of the input is seen."""
        return self._session.num_frames

    def __next__(self) -> Tensor:
        """Compute the next chunk."""
        if self._feed is None:
            raise StopIteration
        try:
            self._fill(self._feed)
            out = self._session.next_chunk()
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
            self._session.close()
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

    def _fill(self, feed: ChunkFeed) -> None:
        feed.fill()


class LatentStream(Stream):
    """What `encode_stream` returns: latents, shape (B, C, l, h, w), chunk by chunk."""


class FrameStream(Stream):
    """What `decode_stream` returns: frames, shape (B, 3, t, H, W), chunk by chunk."""

    _counting: Any = None  # what says at its end how many frames there are

    def __init__(self, session: DecodeSession, feed: ChunkFeed, counting: Any) -> None:
        """Begin a stream; nothing is computed yet."""
        super().__init__(session, feed)
        self._counting = counting

    def _fill(self, feed: ChunkFeed) -> None:
        feed.fill(look_ahead=self._counting is not None)
        if self._counting is not None and self._session.queue.ended:
            found, self._counting = self._counting.num_frames, None
            if found is not None and self._session.queue.seen:
                self._session.know(found)

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

    Args:
        model: The model.
        link: Of its swap.
        codec: Of its family.
        frames: Tensors of shape (B, C, t, H, W), any t, all else equal.
        num_frames: How many frames there are in all; see `encode_session`, also for what follows.
        sample_posterior: Draw latents, rather than take the mode.
        generator: Of random numbers.

    Returns:
        An iterator of latents, shape (B, C, l, h, w), the dtype of the model. Its `num_frames` says how many
        frames there are: as given, else None until all have been seen. Use `torch.no_grad()` around the loop:
        memory is constant where no gradients are recorded.

    Raises:
        InvalidInput: The swap was made without `frames="any"` or was restored, before or meanwhile;
            `num_frames` is not positive, or not the number of frames (too many: as soon as they are seen; too
            few: at the end); an item does not fit the first one.
    """
    call = "encode_stream"
    session = encode_session(
        *(model, link, codec),
        num_frames=num_frames,
        sample_posterior=sample_posterior,
        generator=generator,
        call=call,
    )
    return LatentStream(session, ChunkFeed(call, "frames", frames, session.queue))


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
            then, at the end; else all that the latents hold (4L-3). If it is known at the beginning, the
            numbers are those of one call of `decode`; see `decode_session`.

    Returns:
        An iterator of frames, shape (B, 3, t, H, W), the dtype of the model. Its `num_frames` is the number
        of frames: as given, else None until the end of the latents is seen.

    Raises:
        InvalidInput: As `encode_stream`; the latents are not as many as `num_frames` frames need.
    """
    call = "decode_stream"
    # Only a count that is still open needs to be asked for again, at the end.
    counting = latents if num_frames is None and hasattr(latents, "num_frames") else None
    if counting is not None and latents.num_frames is not None:
        num_frames, counting = check_count(call, "latents.num_frames", latents.num_frames), None
    session = decode_session(model, link, codec, num_frames=num_frames, call=call)
    return FrameStream(session, ChunkFeed(call, "latents", latents, session.queue), counting)
