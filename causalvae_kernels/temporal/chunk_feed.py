"""Tensors of any number of frames, regrouped to chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_video
from ..core.errors import InvalidInput
from ..core.layout import memory_format_of


class ChunkFeed:
    """Regroups items to the lengths of a schedule.

    Holds less than a chunk, and one item.

    Attributes:
        seen: How many frames, or latents, have come in.
        ended: Whether the end of the input was seen.
    """

    def __init__(
        self,
        call: str,
        noun: str,
        items: Iterable[Tensor],
        lengths: Iterator[int],
        total: int | None,
        channels: int,
        num_frames: int | None = None,
    ) -> None:
        """Begin; nothing is asked for yet.

        Args:
            call: Who asks, for messages.
            noun: What the items hold: "frames" or "latents".
            items: Tensors of shape (B, C, t, H, W), any t, all else equal.
            lengths: Of the chunks.
            total: How many there must be in all; None if that is not known.
            channels: C.
            num_frames: Why `total` is as it is, for messages about latents.
        """
        if isinstance(items, Tensor) or not isinstance(items, Iterable):
            raise InvalidInput(
                f"{call}: {noun} is a {type(items).__name__}, expected an iterable of tensors, such as a list"
            )
        self.seen, self.ended = 0, False
        self._call, self._noun, self._channels = call, noun, channels
        self._total, self._num_frames = total, num_frames
        self._items, self._lengths = iter(items), lengths
        self._pieces: deque[Tensor] = deque()
        self._held, self._is_cut = 0, False
        self._first: tuple[Any, ...] | None = None

    def take(self, *, look_ahead: bool = False) -> Tensor | None:
        """Return the next chunk, which is shorter where the input ends; None if nothing is left.

        Args:
            look_ahead: Find out whether the input ends with this chunk.
        """
        wanted = next(self._lengths, 0)
        while not self.ended and (self._held < wanted + look_ahead or not wanted):
            self._pull()
        return self._cut(min(wanted, self._held))

    def check_total(self, total: int, num_frames: int | None) -> None:
        """Require that what came in so far fits the whole."""
        if self.seen == total or (self.seen < total and not self.ended):
            return
        expected = f"expected {total}" + (f", which {num_frames} frames need" if num_frames else "")
        found = "they ended after" if self.ended else "got more than expected, at least"
        raise InvalidInput(f"{self._call}: {self._noun}: {found} {self.seen}, {expected}")

    def close(self) -> None:
        """Let go of all, and close the input."""
        items, self._items = self._items, iter(())
        self._pieces.clear()
        self._held, self.ended = 0, True
        close = getattr(items, "close", None)
        if close is not None:
            close()

    def _pull(self) -> None:
        if self._is_cut:
            # What is left of the last item becomes a tensor of its own, so that the item can go.
            rest = self._pieces[0]
            self._pieces[0] = rest.clone(memory_format=memory_format_of(rest))
            del rest
            self._is_cut = False
        for item in self._items:
            self._check_item(item)
            self.seen += item.shape[2]
            self._pieces.append(item)
            self._held += item.shape[2]
            break
        else:
            self.ended = True
        if self._total is not None:
            self.check_total(self._total, self._num_frames)

    def _cut(self, length: int) -> Tensor | None:
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

    def _check_item(self, item: Any) -> None:
        check_video(self._call, f"an item of {self._noun}", item)
        batch, channels, _, height, width = item.shape
        if self._first is None:
            if channels != self._channels:
                raise InvalidInput(
                    f"{self._call}: {self._noun} of shape {tuple(item.shape)} have {channels} channels, "
                    f"expected {self._channels}"
                )
            self._first = (batch, channels, height, width, item.dtype, item.device)
        found = (batch, channels, height, width, item.dtype, item.device)
        if found != self._first:
            b, c, h, w, dtype, device = self._first
            raise InvalidInput(
                f"{self._call}: {self._noun} after the first {self.seen} have shape {tuple(item.shape)}, "
                f"{item.dtype}, on {item.device}, expected ({b}, {c}, t, {h}, {w}), {dtype}, on {device} as "
                f"those before"
            )
