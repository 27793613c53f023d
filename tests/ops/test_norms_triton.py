"""The Triton norms where a call takes several pieces, tiles and blocks, which small tensors do not."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.parity import compare_norm
from causalvae_kernels.workloads import NormCase, make_norm_call, with_layout

pytestmark = pytest.mark.skipif(not interpreting(), reason="runs kernels on the CPU: TRITON_INTERPRET=1")

LAST = "channels_last_3d"


@pytest.mark.parametrize("steps", [1, 3, 64])
@pytest.mark.parametrize("layout", [LAST, "contiguous", "permuted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_several_tiles_and_pieces(layout, dtype, steps, seed, monkeypatch):
    """Pieces of one tile, of several with a short last one, and of a whole row."""
    from causalvae_kernels.ops.norms.backends.triton import group_norm as triton_group_norm

    monkeypatch.setattr(triton_group_norm, "_PROGRAMS", 1)
    monkeypatch.setattr(triton_group_norm, "_MOST_STEPS", steps)
    case = NormCase("long rows", (2, 256, 2, 1, 57), 4, layout=layout, mean=5.0)
    call = make_norm_call("group_norm", case, dtype, seed)
    comparison = compare_norm("group_norm", call, "triton")
    assert comparison.passed, comparison


@pytest.mark.parametrize("steps", [1, 64])
def test_pieces_are_as_long_as_they_say(steps, seed, monkeypatch):
    """Their means and squares, merged in float64, are those of the tensor."""
    from causalvae_kernels.ops.norms.backends.triton import group_norm as triton_group_norm

    monkeypatch.setattr(triton_group_norm, "_PROGRAMS", 1)
    monkeypatch.setattr(triton_group_norm, "_MOST_STEPS", steps)
    torch.manual_seed(seed)
    x = with_layout(3 + torch.randn(2, 256, 2, 3, 57), LAST)
    first, *_ = launches = triton_group_norm.launches(torch.empty_like(x), x, None, None, 8, 1e-5, True)
    for launch in launches[:2]:
        launch.run()
    partial = first.arguments["out_ptr"].double()
    chunk, chunks = first.arguments["steps"] * first.arguments["BLOCK_P"], first.arguments["chunks"]
    assert partial.shape == (2, 2 * 3 * chunks, 2, 256) and chunks == -(-57 // chunk)
    counts = torch.tensor([min(chunk, 57 - (i % chunks) * chunk) for i in range(partial.shape[1])])
    assert counts.sum() == 2 * 3 * 57
    pivot = x[:, ::32, 0, 0, 0].double().repeat_interleave(32, 1)
    mean = (partial[:, :, 0] * counts.view(1, -1, 1)).sum(1) / counts.sum() + pivot
    assert torch.allclose(mean, x.double().mean((2, 3, 4)), atol=1e-6)
    statistics = launches[1].arguments["out_ptr"].double()
    groups = x.double().unflatten(1, (8, 32))
    expected = groups.mean((2, 3, 4, 5)).repeat_interleave(32, 1)
    assert torch.allclose(statistics[:, 0] + statistics[:, 1], expected, rtol=0, atol=1e-7)
    factor = (groups.var((2, 3, 4, 5), correction=0) + 1e-5).rsqrt().repeat_interleave(32, 1)
    assert torch.allclose(statistics[:, 2], factor, rtol=3e-7)


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [1024, 1100, 1280])
def test_more_channels_than_registers_hold(channels, dtype, layout, seed):
    """Up to 1,024 a pixel is read once; beyond that twice, also where it is written over."""
    case = NormCase("many channels", (1, channels, 1, 3, 4), 4, layout=layout)
    call = make_norm_call("rms_norm", case, dtype, seed)
    comparison = compare_norm("rms_norm", call, "triton", in_place=True)
    assert comparison.passed, comparison
    call = make_norm_call("group_norm", case, dtype, seed)
    comparison = compare_norm("group_norm", call, "triton")
    assert comparison.passed, comparison
