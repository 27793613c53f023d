"""Group norms of every frame by itself: without copies, and in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from causalvae_kernels import FrameBuffer
from causalvae_kernels.core import native
from causalvae_kernels.models import conv
from causalvae_kernels.models.frame_norms import frame_norm
from causalvae_kernels.models.norms import takes_norms
from causalvae_kernels.models.swap import Link
from causalvae_kernels.workloads.cases import with_layout
from tests.support.copies import Copies
from tests.support.cover import pairs

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])


def norm_of(channels: int = 8, groups: int = 4) -> nn.GroupNorm:
    norm = nn.GroupNorm(groups, channels, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.requires_grad_(False)


def frame_by_frame(norm: nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
    frames = [torch.nn.functional.silu(norm.double()(frame.double())) for frame in x.unbind(2)]
    norm.float()
    return torch.stack(frames, dim=2)


@pairs(
    shape=[(2, 8, 5, 6, 7), (1, 8, 1, 3, 4), (2, 8, 3, 1, 1), (1, 8, 4, 1, 9)],
    layout=["contiguous", "channels_last_3d", "sliced", "permuted"],
    grad=[False, True],
    backend=BACKENDS,
)
def test_fresh_and_into_a_buffer(shape, layout, grad, backend):
    norm = norm_of()
    # The two channels of a group are apart: the difference of values that are nearly equal has few digits.
    apart = 2 * (torch.arange(shape[1]) % 2).view(-1, 1, 1, 1)
    x = with_layout(torch.rand(shape) + apart, layout).requires_grad_(grad)
    op = frame_norm(norm, Link("Mochi", backend, None))
    expected = frame_by_frame(norm, x.detach())
    got = op.op(x, *op.arguments, **op.options)
    assert got.requires_grad == grad and torch.allclose(got.double(), expected, rtol=1e-4, atol=1e-5)
    x = x.detach()
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        buffer = FrameBuffer.empty(shape, head_room=2, halo=(1, 1, 1, 1), memory_format=memory_format)
        buffer.storage.fill_(7)
        op.write(buffer, x)
        assert torch.allclose(buffer.body.double(), expected, rtol=1e-4, atol=1e-5)
        assert (buffer.storage[:, :, :2] == 7).all() and (buffer.storage[:, :, :, 0] == 7).all()
    itself = FrameBuffer(x.contiguous(), 0)
    op.write(itself, itself.storage)
    assert torch.allclose(itself.storage.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="the framework's norm takes a copy")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_nothing_is_copied(layout):
    x = torch.randn(2, 8, 5, 6, 7).contiguous(memory_format=layout)
    op = frame_norm(norm_of(), Link("Mochi", "cpu", None))
    with Copies(least=x.numel() // 10) as copies:
        got = op.op(x, *op.arguments, **op.options)
    assert not copies.found and got.is_contiguous(memory_format=layout)


def test_what_is_left_to_the_original(monkeypatch):
    """Small half precision in its own layout, nothing at all, and parameters that no op takes."""
    monkeypatch.setattr(conv, "SMALL", 2**18)
    link, x = Link("Mochi", None, None), torch.randn(1, 8, 2, 3, 4).bfloat16()
    assert conv.leaves(link, x) and conv.leaves(link, x.float()[:0])
    assert not conv.leaves(link, x.contiguous(memory_format=torch.channels_last_3d))
    assert not conv.leaves(link, x.float())
    norm = norm_of()
    assert takes_norms((norm, norm), x.float())
    assert not takes_norms((norm, norm_of().double()), x.float())
