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
