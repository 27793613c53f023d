"""Tensors of any number of frames, regrouped to chunks."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_video
from ..core.errors import InvalidInput
from ..core.layout import memory_format_of
from .schedule import ChunkLengths


class ChunkQueue:
    """Regroups items that are put in to the lengths of a schedule. Holds less than a chunk, and one item.

    Attributes:
        seen: How many frames, or latents, have come in.
        ended: Whether no more will come.
    """

    def __init__(
        self,
        call: str,
        noun: str,
        lengths: ChunkLengths,
        total: int | None,
        channels: int,
        num_frames: int | None = None,
    ) -> None:
        """Begin with nothing.

        Args:
            call: Who asks, for messages.
            noun: What the items hold: "frames" or "latents".
            lengths: Of the chunks.
            total: How many there must be in all; None if that is not known.
            channels: C.
            num_frames: Why `total` is as it is, for messages about latents.
        """
        self.seen, self.ended = 0, False
        self._call, self._noun, self._channels = call, noun, channels
        self._total, self._num_frames = total, num_frames
        self._lengths, self._taken = lengths, 0
        self._pieces: deque[Tensor] = deque()
        self._held, self._is_cut = 0, False
        self._first: tuple[Any, ...] | None = None

    @property
    def count(self) -> int | None:
        """How many chunks there are; None if the number of frames is not known."""
        return self._lengths.count

    def put(self, item: Tensor) -> None:
        """Append frames, shape (B, C, t, H, W), any t, all else equal.

        Raises:
            InvalidInput: They do not fit those before, or are too many. Nothing was changed then.
        """
        self._check_item(item)
        if self._total is not None and self.seen + item.shape[2] > self._total:
            raise self._wrong_total(self.seen + item.shape[2], self._total, self._num_frames)
        self.seen += item.shape[2]
        self._pieces.append(item)
        self._held += item.shape[2]

    def let_go(self) -> None:
        """Keep what is left of the last item in a tensor of its own, so that the item can go."""
        if self._is_cut:
            rest = self._pieces[0]
            self._pieces[0] = rest.clone(memory_format=memory_format_of(rest))
            self._is_cut = False

    def end(self) -> None:
        """No more will come.

        Raises:
            InvalidInput: More were expected.
        """
        if self._total is not None:
            self.check_total(self._total, self._num_frames, ended=True)
        self.ended = True

    def is_ready(self, *, look_ahead: bool = False) -> bool:
        """Tell whether `take` returns all that it ever will.

        Args:
            look_ahead: It is also known whether the input ends with this chunk.
        """
        wanted = self._lengths[self._taken]
        return self.ended or 0 < wanted + look_ahead <= self._held

    def take(self) -> Tensor | None:
        """Return the next chunk, which is shorter where the input ends; None if nothing is left."""
        length = min(self._lengths[self._taken], self._held)
        self._taken += 1
        taken: list[Tensor] = []
        self._is_cut = False
        while length:
            piece = self._pieces.popleft()
            if piece.shape[2] > length:
                self._pieces.appendleft(piece[:, :, length:])
                self._is_cut = True
                piece = piece[:, :, :length]
            length -= piece.shape[2]
            self._held -= piece.shape[2]
            taken.append(piece)
        return torch.cat(taken, dim=2) if len(taken) > 1 else taken[0] if taken else None

    def check_total(self, total: int, num_frames: int | None, *, ended: bool | None = None) -> None:
        """Require that what came in so far fits the whole."""
        ended = self.ended if ended is None else ended
        if self.seen > total or (ended and self.seen < total):
            raise self._wrong_total(self.seen, total, num_frames, ended=ended)

    def copy(self) -> ChunkQueue:
        """Return a queue that holds the same tensors, which nobody changes, and goes its own way."""
        other = copy.copy(self)
        other._pieces = deque(self._pieces)
        return other

    def clear(self) -> None:
        """Let go of all; nothing more will come."""
        self._pieces.clear()
        self._held, self.ended = 0, True

    def _wrong_total(
        self, seen: int, total: int, num_frames: int | None, *, ended: bool = False
    ) -> InvalidInput:
        expected = f"expected {total}" + (f", which {num_frames} frames need" if num_frames else "")
        found = "they ended after" if ended else "got more than expected, at least"
        return InvalidInput(f"{self._call}: {self._noun}: {found} {seen}, {expected}")

    def _check_item(self, item: Any) -> None:
        check_video(self._call, f"an item of {self._noun}", item)
        batch, channels, _, height, width = item.shape
        found = (batch, channels, height, width, item.dtype, item.device)
        if self._first is None:
            if channels != self._channels:
                raise InvalidInput(
                    f"{self._call}: {self._noun} of shape {tuple(item.shape)} have {channels} channels, "
                    f"expected {self._channels}"
                )
            self._first = found
        if found != self._first:
            b, c, h, w, dtype, device = self._first
            raise InvalidInput(
                f"{self._call}: {self._noun} after the first {self.seen} have shape {tuple(item.shape)}, "
                f"{item.dtype}, on {item.device}, expected ({b}, {c}, t, {h}, {w}), {dtype}, on {device} as "
                f"those before"
            )


class ChunkFeed:
    """Takes items from an iterable into a queue, no sooner than they are needed."""

    def __init__(self, call: str, noun: str, items: Iterable[Tensor], queue: ChunkQueue) -> None:
        """Begin; nothing is asked for yet.

        Raises:
            InvalidInput: `items` is a tensor, or not iterable.
        """
        if isinstance(items, Tensor) or not isinstance(items, Iterable):
            raise InvalidInput(
                f"{call}: {noun} is a {type(items).__name__}, expected an iterable of tensors, such as a list"
            )
        self._items, self._queue = iter(items), queue

    def fill(self, *, look_ahead: bool = False) -> None:
        """Ask for items until the next chunk is ready."""
        while not self._queue.is_ready(look_ahead=look_ahead):
            self._queue.let_go()
            for item in self._items:
                self._queue.put(item)
                break
            else:
                self._queue.end()

    def close(self) -> None:
        """Close the input."""
        items, self._items = self._items, iter(())
        close = getattr(items, "close", None)
        if close is not None:
            close()
