"""Workloads and cases are what they say."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels.core.layout import is_channels_last_3d
from causalvae_kernels.workloads import (
    CONV_CASES,
    GATED,
    PAD_CASES,
    WORKLOADS,
    in_buffer,
    make_video,
    with_layout,
)


def test_names_are_unique():
    for cases in (CONV_CASES, PAD_CASES):
        assert len({case.name for case in cases}) == len(cases)
    assert all(name == workload.name for name, workload in WORKLOADS.items())


def test_a_name_says_what_the_workload_is():
    for name, w in WORKLOADS.items():
        parts = [f"{w.in_channels}x{w.out_channels}", f"{w.num_frames}x{w.height}x{w.width}"]
        if w.kernel_size != (3, 3, 3):
            parts.append("x".join(map(str, w.kernel_size)))
        if w.stride != (1, 1, 1):
            parts.append("s" + "x".join(map(str, w.stride)))
        assert name == "-".join(parts)
    assert set(GATED) <= set(WORKLOADS) and len(set(GATED)) == 8


def test_videos_move_and_stay_in_range():
    clip = make_video(5, 12, 20, batch=2, seed=3)
    assert clip.shape == (2, 3, 5, 12, 20) and clip.abs().max() <= 1
    assert not torch.equal(clip[:, :, 0], clip[:, :, 1])
    assert torch.equal(clip, make_video(5, 12, 20, batch=2, seed=3))
    assert make_video(1, 4, 4, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "sliced", "permuted"])
def test_layouts_keep_values_and_change_strides(layout):
    x = torch.randn(2, 3, 4, 5, 6)
    y = with_layout(x, layout)
    assert torch.equal(x, y)
    assert y.is_contiguous() == (layout == "contiguous")
    assert is_channels_last_3d(y) == (layout == "channels_last_3d")


def test_a_buffers_border_is_poisoned():
    buffer = in_buffer(torch.zeros(1, 2, 3, 4, 5), 2, (1, 1, 1, 1))
    assert buffer.storage.isnan().sum() == buffer.storage.numel() - 2 * 3 * 4 * 5
