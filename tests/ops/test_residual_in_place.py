"""A residual that lies where the output goes: backends that say so read an element before they write it."""

import torch

from causalvae_kernels import causal_conv3d
from causalvae_kernels.ops.causal_conv3d import adds_in_place
from tests.support.backends import DTYPES
from tests.support.cover import pairs

SHAPES = [  # Winograd's form and the direct one, odd sizes, one frame, one row
    ((1, 16, 4, 9, 13), 16),
    ((2, 5, 3, 7, 6), 11),
    ((1, 16, 1, 8, 8), 9),
    ((1, 8, 2, 1, 5), 8),
    ((1, 16, 3, 5, 24), 16),  # rows of more than a vector that no vector divides
    ((1, 7, 2, 4, 41), 6),
]


@pairs(
    size=SHAPES,
    backend=["reference", "aten", "cpu"],
    dtype=DTYPES,
    memory_format=[torch.contiguous_format, torch.channels_last_3d],
)
def test_in_place_is_as_beside(backend, dtype, memory_format, size):
    shape, channels = size
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(channels, shape[1], 3, 3, 3).to(dtype) / 10
    bias = torch.randn(channels).to(dtype)
    # A window, as a group of frames is one.
    whole = torch.randn(shape[0], channels, shape[2] + 2, *shape[3:]).to(dtype)
    whole = whole.contiguous(memory_format=memory_format)
    before, window = whole.clone(), whole[:, :, 1:-1]
    expected = causal_conv3d(x, weight, bias, residual=window, backend=backend)
    assert adds_in_place(x, weight, bias, backend=backend)
    causal_conv3d(x, weight, bias, residual=window, out=window, backend=backend)
    assert torch.equal(window, expected)
    assert torch.equal(whole[:, :, [0, -1]], before[:, :, [0, -1]])
