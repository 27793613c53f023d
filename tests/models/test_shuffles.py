"""Pixels into channels: the formula of diffusers, in every layout, with and without gradients."""

from __future__ import annotations

import functools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.models.shuffles import pixels_to_channels

FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def spread(x: torch.Tensor, factors: tuple[int, int, int]) -> torch.Tensor:
    """Block by block."""
    ft, fh, fw = factors
    batch, channels, frames, height, width = x.shape
    out = x.new_zeros(batch, channels // (ft * fh * fw), frames * ft, height * fh, width * fw)
    for t in range(ft):
        for h in range(fh):
            for w in range(fw):
                first = (t * fh + h) * fw + w
                out[:, :, t::ft, h::fh, w::fw] = x[:, first :: ft * fh * fw]
    return out


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pixels_to_channels_is_its_inverse(data):
    draw = data.draw
    factors = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    blocks = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    channels, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    repeats = draw(st.booleans())
    into, layout, grad = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(FORMATS)), draw(st.booleans())
    frames, height, width = (b * f for b, f in zip(blocks, factors, strict=True))
    whole = torch.randn(batch, channels, frames, height, width)
    if repeats:
        whole[:, :, : factors[0]] = whole[:, :, :1]
    x = (whole[:, :, factors[0] - 1 :] if repeats else whole).contiguous(memory_format=layout)
    got = pixels_to_channels(
        x.requires_grad_(grad),
        factors,
        memory_format=into,
        repeats_first=repeats,
    )
    assert got.is_contiguous(memory_format=into) and got.requires_grad == grad
    assert torch.equal(spread(got, factors), whole)


def test_pixels_become_channels_in_one_write():
    """In the layout that is asked for, without a copy in another one."""
    x = torch.randn(1, 4, 5, 16, 16)
    for layout in FORMATS:
        fold = functools.partial(pixels_to_channels, x, (2, 2, 2), memory_format=layout, repeats_first=True)
        assert peak_allocated(fold) <= 1.25 * fold().nbytes
