"""How kernels walk tensors of any strides: axes that touch are one, and what may go 16 bytes at a time."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels.core.pixel_walk import LIMIT, PixelWalk, covering_block
from causalvae_kernels.workloads import with_layout

LAST = "channels_last_3d"


@pytest.mark.parametrize(
    ("shape", "layout", "sizes"),
    [
        ((2, 16, 3, 5, 7), LAST, (2 * 3 * 5 * 7, 1, 1, 1)),
        ((2, 16, 3, 5, 7), "contiguous", (3 * 5 * 7, 2, 1, 1)),
        ((1, 16, 1, 5, 1), "contiguous", (5, 1, 1, 1)),
        ((1, 16, 1, 1, 1), "contiguous", (1, 1, 1, 1)),
        ((2, 16, 3, 5, 7), "permuted", (5 * 7, 2 * 3, 1, 1)),
        ((2, 16, 3, 5, 7), "sliced", (7, 3 * 5, 2, 1)),
    ],
)
def test_axes_that_touch_are_one(shape, layout, sizes):
    x = with_layout(torch.empty(shape), layout)
    assert PixelWalk.of(x, x).sizes == sizes
    frames, rows, columns = shape[2:]
    apart = PixelWalk.of(x, x, batch_apart=True)
    assert (
        apart.sizes[3] == shape[0]
        and apart.sizes[0] * apart.sizes[1] * apart.sizes[2] == frames * rows * columns
    )
    assert PixelWalk.of(x, merge=False).sizes == (columns, rows, frames, shape[0])


def test_axes_touch_only_if_they_do_in_every_tensor():
    x, padded = torch.empty(1, 8, 3, 5, 7), torch.empty(1, 8, 5, 7, 9)
    assert PixelWalk.of(x, padded[:, :, 2:, :5, :7]).sizes == (7, 5, 3, 1)
    last = with_layout(padded, LAST)
    assert PixelWalk.of(last[:, :, 2:], with_layout(padded[:, :, 2:], LAST)).sizes == (3 * 7 * 9, 1, 1, 1)
    assert PixelWalk.of(last[:, :, 2:, 1:, 1:]).sizes == (8, 6, 3, 1)


def test_no_axis_is_longer_than_32_bits_count():
    wide = torch.empty(1, dtype=torch.bfloat16).expand(1, 1, 2**16, 2**16, 1)
    walk = PixelWalk.of(wide)
    assert max(walk.sizes) <= LIMIT and walk.sizes[0] * walk.sizes[1] == wide.numel()


@pytest.mark.parametrize(
    ("shape", "layout", "inner"),
    [
        ((1, 16, 3, 5, 7), LAST, "channels"),
        ((1, 12, 3, 5, 7), LAST, "neither"),
        ((2, 5, 2, 4, 4), "contiguous", "pixels"),
        ((2, 5, 3, 5, 7), "contiguous", "neither"),
        ((1, 8, 1, 4, 4), "sliced", "neither"),
        ((1, 8, 1, 1, 1), "contiguous", "channels"),
    ],
)
def test_what_goes_16_bytes_at_a_time(shape, layout, inner):
    assert PixelWalk.of(with_layout(torch.empty(shape, dtype=torch.bfloat16), layout)).inner(0) == inner


def test_windows_are_aligned_where_they_begin_and_step_so():
    last = with_layout(torch.empty(1, 24, 4, 6, 6, dtype=torch.bfloat16), LAST)
    assert PixelWalk.of(last[:, 8:, 1:, 1:, 1:]).inner(0) == "channels"
    assert PixelWalk.of(last[:, 4:20]).inner(0) == "neither"
    rows = torch.empty(1, 4, 2, 5, 24, dtype=torch.bfloat16)
    assert PixelWalk.of(rows[..., 8:]).inner(0) == "pixels"
    assert PixelWalk.of(rows[..., 1:17]).inner(0) == "neither"


@pytest.mark.parametrize(
    ("channels", "block"),
    [(1, 1), (3, 4), (16, 16), (33, 32), (67, 32), (96, 32), (128, 128), (160, 64), (192, 64), (512, 256)],
)
def test_blocks_leave_few_lanes_idle(channels, block):
    assert covering_block(channels) == block
    if channels >= 100:
        assert -(-channels // block) * block <= 1.25 * channels


@pytest.mark.parametrize("layouts", [(LAST, LAST), ("contiguous", "contiguous"), (LAST, "contiguous")])
def test_a_tile_is_wide_along_what_is_next_to_one_another(layouts):
    tensors = [with_layout(torch.empty(1, 160, 3, 5, 7), layout) for layout in layouts]
    block = {(LAST, LAST): 64, ("contiguous", "contiguous"): 4}.get(layouts, 32)
    assert PixelWalk.of(*tensors).tile(1024) == (block, 1024 // block)
