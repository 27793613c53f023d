"""`FrameBuffer`: where the body lies, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import FrameBuffer, InvalidInput
from causalvae_kernels.temporal.state import past_frames


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_the_body_is_a_view_inside_the_storage(memory_format):
    buffer = FrameBuffer.empty(
        (2, 3, 4, 5, 6), head_room=2, halo=(1, 2, 3, 0), dtype=torch.float16, memory_format=memory_format
    )
    assert buffer.storage.shape == (2, 3, 6, 8, 9) and buffer.storage.dtype == torch.float16
    assert buffer.storage.is_contiguous(memory_format=memory_format)
    buffer.storage.zero_()
    buffer.body.fill_(1)
    assert buffer.body.shape == (2, 3, 4, 5, 6)
    assert (buffer.storage[:, :, 2:, 1:6, 3:9] == 1).all()
    assert buffer.storage.sum() == 2 * 3 * 4 * 5 * 6
    assert "head_room=2" in repr(buffer)


def test_room_behind_the_last_frame():
    buffer = FrameBuffer.empty((2, 3, 4, 5, 6), head_room=2, halo=(1, 0, 0, 1), tail_room=3)
    assert buffer.storage.shape == (2, 3, 9, 6, 7) and buffer.body.shape == (2, 3, 4, 5, 6)
    buffer.storage.zero_()
    buffer.body.fill_(1)
    assert (buffer.storage[:, :, 2:6, 1:, :6] == 1).all() and buffer.storage.sum() == 2 * 3 * 4 * 5 * 6
    assert buffer.without_tail.data_ptr() == buffer.storage.data_ptr()
    assert buffer.without_tail.shape == (2, 3, 6, 6, 7)
    assert "tail_room=3" in repr(buffer)
    for tail_room, words in ((-1, "nothing negative"), (7, "no room")):
        with pytest.raises(InvalidInput, match=words):
            FrameBuffer(buffer.storage, 2, tail_room=tail_room)


def test_without_border_the_body_is_the_storage():
    x = torch.randn(1, 2, 3, 4, 5)
    assert FrameBuffer(x, 0).body is x


@pytest.mark.parametrize(
    ("shape", "head_room", "halo", "words"),
    [
        ((2, 3, 4), 1, (0, 0, 0, 0), "five dimensions"),
        ((1, 1, 2, 4, 4), 2, (0, 0, 0, 0), "no room"),
        ((1, 1, 3, 4, 4), 2, (2, 2, 0, 0), "no room"),
        ((1, 1, 3, 4, 4), -1, (0, 0, 0, 0), "nothing negative"),
        ((1, 1, 3, 4, 4), 1, (0, 0, -1, 0), "nothing negative"),
        ((1, 1, 3, 4, 4), 1, (0, 0), "4 ints"),
    ],
)
def test_bad_input_gets_a_sentence(shape, head_room, halo, words):
    with pytest.raises(InvalidInput, match=words):
        FrameBuffer(torch.zeros(shape), head_room, halo)


def test_what_stands_before_the_first_frame():
    x, state = torch.randn(1, 2, 3, 4, 5), torch.randn(1, 2, 2, 4, 5)
    assert torch.equal(torch.cat(past_frames(x, 2, None, "replicate"), 2), x[:, :, [0, 0]])
    assert torch.equal(torch.cat(past_frames(x, 2, None, "zeros"), 2), torch.zeros(1, 2, 2, 4, 5))
    assert past_frames(x, 2, state, "zeros") == [state]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 3, 4, 4, 4.0), (1, 3, 0, 4, 4), 5, None], ids=str)
def test_empty_wants_five_sizes(shape):
    with pytest.raises(InvalidInput, match="expected five sizes"):
        FrameBuffer.empty(shape, head_room=2)


@pytest.mark.parametrize("dtype", [int, 3, "float32", None], ids=str)
def test_empty_wants_a_dtype_of_torch(dtype):
    with pytest.raises(InvalidInput, match="expected one like torch.float32"):
        FrameBuffer.empty((1, 3, 4, 4, 4), head_room=2, dtype=dtype)


def test_empty_checks_the_border_before_it_allocates():
    for border in ({"head_room": -1}, {"head_room": 2.0}, {"head_room": 1, "halo": (1, 1)}):
        with pytest.raises(InvalidInput, match="FrameBuffer"):
            FrameBuffer.empty((1, 3, 2**20, 2**20, 2**20), **border)
