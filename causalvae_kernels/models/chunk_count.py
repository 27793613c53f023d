"""Which chunk of a sample an encoder or decoder is called with, when the model's own loop calls it.

If nothing else holds a chunk's cache, it is freed while it is read; the last chunk makes no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Chunks:
    """The chunks of one sample, in the order in which a model's own loop takes them.

    Attributes:
        link: Of the swap.
        total: How many a sample has; tiles are samples of their own.
        begun: How many have begun.
    """

    link: Any
    total: int
    begun: int = 0


@dataclass(frozen=True)
class Chunk:
    """What is known of a chunk.

    Attributes:
        owns_cache: Whether the old cache is not needed after it was read, so that it can be freed piece by
            piece.
        last: Whether no chunk follows, so that no new cache is needed.
    """

    owns_cache: bool = False
    last: bool = False


_chunks: ContextVar[Chunks | None] = ContextVar("causalvae_kernels_chunks", default=None)


@contextmanager
def chunks_of(link: Any, total: int) -> Iterator[None]:
    """Tell the encoder or decoder of a swap that it is called by the model's own loop over so many chunks."""
    token = _chunks.set(Chunks(link, total))
    try:
        yield
    finally:
        _chunks.reset(token)


def next_chunk(link: Any) -> Chunk:
    """Return what is known of the chunk that begins."""
    chunks = _chunks.get()
    if torch.compiler.is_compiling() or chunks is None or chunks.link is not link:
        return Chunk()
    chunks.begun += 1
    return Chunk(owns_cache=True, last=chunks.begun % chunks.total == 0)
