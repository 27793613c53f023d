"""Chunk schedules, and the regrouping of tensors to them."""

from __future__ import annotations

import weakref
from itertools import islice

import pytest
import torch

from causalvae_kernels.core.errors import InvalidInput
from causalvae_kernels.temporal.chunk_feed import ChunkFeed, ChunkQueue
from causalvae_kernels.temporal.schedule import (
    frame_chunks,
    latent_chunks,
    latents_of,
    padded_length,
    windows,
)

RATIO = 4


def diffusers_chunks(length, size):
    """The loop of diffusers' `_encode` and `_decode`, with its own variables."""
    found = []
    for i in range(max(length // size, 1)):
        remaining_frames = length % size
        start_frame = size * i + (0 if i == 0 else remaining_frames)
        end_frame = size * (i + 1) + remaining_frames
        found.append(len(range(length)[start_frame:end_frame]))
    return found


def test_what_is_written_down():
    assert list(islice(frame_chunks(8, RATIO), 4)) == [9, 8, 8, 8]
    assert list(islice(latent_chunks(2), 4)) == [3, 2, 2, 2]
    assert list(frame_chunks(8, RATIO, 33)) == [9, 8, 8, 8]
    assert list(frame_chunks(8, RATIO, 31)) == [9, 8, 8, 6]
    assert list(frame_chunks(8, RATIO, 13)) == [13]
    assert list(frame_chunks(8, RATIO, 22)) == [9, 8, 5]
    assert list(latent_chunks(2, 7)) == [3, 2, 2]
    assert list(latent_chunks(2, 8)) == [2, 2, 2, 2]
    assert [latents_of(n, RATIO) for n in (1, 2, 5, 6, 9)] == [1, 2, 2, 3, 3]
    assert [padded_length(n, RATIO, first=True) for n in (1, 2, 5, 6, 9)] == [1, 5, 5, 9, 9]
    assert [padded_length(n, RATIO, first=False) for n in (1, 4, 5, 8)] == [4, 4, 8, 8]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_latents_of_a_known_number_go_as_diffusers_sends_them(size):
    for total in range(1, 40):
        assert list(latent_chunks(size, total)) == diffusers_chunks(total, size)


@pytest.mark.parametrize(("size", "ratio"), [(8, 4), (4, 4), (12, 4), (8, 8), (3, 1)])
def test_frames_of_a_known_number_go_as_diffusers_sends_the_padded_ones(size, ratio):
    for total in range(1, 60):
        lengths = list(frame_chunks(size, ratio, total))
        padded = [padded_length(n, ratio, first=i == 0) for i, n in enumerate(lengths)]
        assert sum(lengths) == total and min(lengths) > 0
        assert padded == diffusers_chunks(1 + ratio * (latents_of(total, ratio) - 1), size)
        assert padded[:-1] == lengths[:-1]


def test_chunks_of_no_whole_latents_are_refused():
    assert list(frame_chunks(6, RATIO, 9)) == [9]
    for total in (10, 13, None):
        with pytest.raises(InvalidInput, match="chunks of 6 frames .* expected a multiple of 4"):
            frame_chunks(6, RATIO, total)


class Pulled:
    """A queue that is filled as it is asked."""

    def __init__(self, items, total=None):
        self.queue = ChunkQueue("call", "latents", latent_chunks(2, total), total, channels=1)
        self.feed = ChunkFeed("call", "latents", items, self.queue)

    def take(self, look_ahead=False):
        self.feed.fill(look_ahead=look_ahead)
        return self.queue.take()

    def close(self):
        self.queue.clear()
        self.feed.close()

    ended, seen = (property(lambda self, n=n: getattr(self.queue, n)) for n in ("ended", "seen"))


feed_of = Pulled


def numbered(first, count):
    return torch.arange(first, first + count, dtype=torch.float32).view(1, 1, count, 1, 1)


def read(feed):
    return [chunk.flatten().tolist() for chunk in iter(feed.take, None)]


@pytest.mark.parametrize("sizes", [[1] * 12, [12], [5, 7], [3, 2, 2, 2, 2, 1], [1, 10, 1], [2, 1, 9]])
def test_items_of_any_size_give_the_same_chunks(sizes):
    items, start = [], 0
    for size in sizes:
        items.append(numbered(start, size))
        start += size
    assert read(feed_of(items)) == [[0, 1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11]]
    assert read(feed_of(items, total=12)) == [[n, n + 1] for n in range(0, 12, 2)]


def test_nothing_is_asked_for_early():
    asked = []

    def items():
        for n in range(6):
            asked.append(n)
            yield numbered(n, 1)

    feed = feed_of(items())
    assert asked == []
    feed.take()
    assert asked == [0, 1, 2] and not feed.ended
    feed.take(look_ahead=True)
    assert asked == [0, 1, 2, 3, 4, 5] and not feed.ended
    assert feed.take().flatten().tolist() == [5] and feed.ended and feed.seen == 6


def test_looking_ahead_sees_the_end_with_the_last_chunk():
    feed = feed_of([numbered(0, 3), numbered(3, 2)])
    feed.take(look_ahead=True)
    assert not feed.ended
    assert feed.take(look_ahead=True).flatten().tolist() == [3, 4] and feed.ended


def test_it_holds_less_than_a_chunk_and_one_item():
    """While the next item is made, the one before is gone, though a part of it is still to come."""
    alive, made, total = [], [], 0

    def items():
        for n in range(6):
            alive.append(sum(item() is not None for item in made))
            item = numbered(7 * n, 7)
            made.append(weakref.ref(item.untyped_storage()))
            yield item
            del item

    feed = feed_of(items())
    while (chunk := feed.take()) is not None:
        total += chunk.shape[2]
        del chunk
    assert total == 42 and alive == [0] * 6


def test_a_wrong_number_is_told_as_soon_as_it_is_seen():
    seen = []

    def items(count):
        for n in range(count):
            seen.append(n)
            yield numbered(n, 1)

    with pytest.raises(InvalidInput, match="latents: they ended after 4, expected 5"):
        read(feed_of(items(4), total=5))
    seen.clear()
    with pytest.raises(InvalidInput, match="got more than expected, at least 6, expected 5"):
        read(feed_of(items(9), total=5))
    assert len(seen) == 6


def test_closing_closes_the_input():
    closed = []

    def items():
        try:
            for n in range(9):
                yield numbered(n, 1)
        finally:
            closed.append(True)

    source = items()
    feed = feed_of(source)
    feed.take()
    feed.close()
    assert closed == [True] and feed.take() is None and next(source, None) is None


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("window", [1, 2, 3, 5, 7])
def test_windows_are_those_that_a_loop_cuts(step, window):
    for length in range(20):
        for stop in (None, length - 2, length + 1):
            starts = range(0, length if stop is None else stop, step)
            cut = [size for size, count in windows(length, step, window, stop) for _ in range(count)]
            assert cut == [min(length - start, window) for start in starts]
    assert len(list(windows(10**12, step, window))) <= window
