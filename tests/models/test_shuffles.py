"""Pixels into channels and back: the formulas of diffusers, in every layout, with and without gradients."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.models.shuffles import channels_to_pixels, fits_blocks, pixels_to_channels

FORMATS = (torch.contiguous_format, torch.channels_last_3d)


def spread(x: torch.Tensor, factors: tuple[int, int, int], width_first: bool) -> torch.Tensor:
    """Block by block."""
    ft, fh, fw = factors
    batch, channels, frames, height, width = x.shape
    out = x.new_zeros(batch, channels // (ft * fh * fw), frames * ft, height * fh, width * fw)
    for t in range(ft):
        for h in range(fh):
            for w in range(fw):
                first = (t * fw + w) * fh + h if width_first else (t * fh + h) * fw + w
                out[:, :, t::ft, h::fh, w::fw] = x[:, first :: ft * fh * fw]
    return out


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_channels_to_pixels(data):
    draw = data.draw
    factors = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    repeats, channels, batch = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    frames, size = draw(st.integers(1, 3)), draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    drops, width_first, residual = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    into, layout, grad = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(FORMATS)), draw(st.booleans())
    block = factors[0] * factors[1] * factors[2]
    x = torch.randn(batch, repeats * channels * block, frames, *size).contiguous(memory_format=layout)
    r = torch.randn(batch, channels * block, frames, *size).contiguous(memory_format=layout)
    expected = spread(x + r.repeat(1, repeats, 1, 1, 1) if residual else x, factors, width_first)
    expected = expected[:, :, factors[0] - 1 if drops else 0 :]
    got = channels_to_pixels(
        x.requires_grad_(grad),
        factors,
        memory_format=into,
        drops_lead=drops,
        width_first=width_first,
        residual=r if residual else None,
    )
    assert torch.equal(got, expected) and got.is_contiguous(memory_format=into)
    assert got.requires_grad == grad


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_pixels_to_channels_is_its_inverse(data):
    draw = data.draw
    factors = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    blocks = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    channels, batch = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    repeats, width_first = draw(st.booleans()), draw(st.booleans())
    into, layout, grad = draw(st.sampled_from(FORMATS)), draw(st.sampled_from(FORMATS)), draw(st.booleans())
    frames, height, width = (b * f for b, f in zip(blocks, factors, strict=True))
    whole = torch.randn(batch, channels, frames, height, width)
    if repeats:
        whole[:, :, : factors[0]] = whole[:, :, :1]
    x = (whole[:, :, factors[0] - 1 :] if repeats else whole).contiguous(memory_format=layout)
    assert fits_blocks(x.shape, factors, repeats)
    got = pixels_to_channels(
        x.requires_grad_(grad),
        factors,
        memory_format=into,
        repeats_first=repeats,
        width_first=width_first,
    )
    assert got.is_contiguous(memory_format=into) and got.requires_grad == grad
    assert torch.equal(spread(got, factors, width_first), whole)


@pytest.mark.parametrize(
    ("shape", "repeats", "fits"),
    [((1, 1, 4, 4, 4), False, True), ((1, 1, 4, 4, 4), True, False), ((1, 1, 5, 4, 4), True, True)]
    + [((1, 1, 4, 3, 4), False, False), ((1, 1, 4, 4, 3), False, False)],
)
def test_whole_blocks(shape, repeats, fits):
    assert fits_blocks(shape, (2, 2, 2), repeats) is fits


def test_pixels_become_channels_in_one_write():
    """In the layout that is asked for, without a copy in another one."""
    x = torch.randn(1, 4, 5, 16, 16)
    for layout in FORMATS:
        fold = functools.partial(pixels_to_channels, x, (2, 2, 2), memory_format=layout, repeats_first=True)
        assert peak_allocated(fold) <= 1.25 * fold().nbytes
