"""Frames that code moves about before a convolution: whatever it does, the numbers are the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.coder import CallStep, OpStep
from tests.support.original_code import PaddingConv, images, video

pytestmark = pytest.mark.one_backend

MOVES = {
    "nothing": lambda x: x,
    "first frame": lambda x: x[:, :, :1],
    "rest": lambda x: x[:, :, 1:] if x.shape[2] > 1 else x,
    "last two": lambda x: x[:, :, -2:].clone(),
    "every other": lambda x: x[:, :, ::2],
    "one by index": lambda x: torch.cat([x[:, :, -1].unsqueeze(2), x], dim=2),
    "first in front": lambda x: torch.cat([x[:, :, :1], x], 2),
    "repeated": lambda x: torch.cat((x[:, :, :1].repeat(1, 1, 2, 1, 1), x), 2),
    "expanded": lambda x: torch.cat((x[:, :, :1].expand(-1, -1, 2, -1, -1), x), dim=2),
    "zeros in front": lambda x: F.pad(x, (0, 0, 0, 0, 2, 0)),
    "zeros like": lambda x: torch.cat([torch.zeros_like(x[:, :, :1]), x], 2),
    "zeros behind": lambda x: torch.cat([x, x.new_zeros(x.shape)[:, :, :1]], 2),
    "last behind": lambda x: torch.cat([x, x[:, :, -1:]], 2),
    "zeros around": lambda x: F.pad(x, (1, 1, 1, 1)),
    "zeros at two sides": lambda x: F.pad(x, (0, 1, 0, 1)),
    "edges": lambda x: F.pad(x, (1, 1, 1, 1, 2, 0), mode="replicate"),
    "mirrored": lambda x: F.pad(x, (1, 1, 1, 1, 0, 0), mode="reflect"),
    "as images": lambda x: video(images(x), x.shape[0]),
    "padded images": lambda x: video(F.pad(images(x), (1, 1, 1, 1)), x.shape[0]),
    "larger images": lambda x: video(F.interpolate(images(x), scale_factor=2.0), x.shape[0]),
    "frames first": lambda x: x.transpose(0, 2)[-2:].transpose(0, 2).contiguous(),
    "all axes turned": lambda x: x.permute(4, 2, 0, 1, 3).permute(2, 3, 1, 4, 0),
    "double frames": lambda x: x.repeat_interleave(2, dim=2),
    "larger": lambda x: F.interpolate(x, scale_factor=(1.0, 2.0, 2.0)),
    "larger and longer": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
    "first one aside": lambda x: (
        torch.cat(
            [F.interpolate(p, scale_factor=(t, 2, 2)) for t, p in ((1, x[:, :, :1]), (2, x[:, :, 1:]))], 2
        )
        if x.shape[2] > 1
        else F.interpolate(x, scale_factor=(1, 2, 2))
    ),
    "in float32": lambda x: x.to(torch.float32).repeat_interleave(2, 2).type_as(x),
    "parted in time": lambda x: (
        torch.cat(x.split([1, x.shape[2] - 1], dim=2)[::-1], 2) if x.shape[2] > 1 else x
    ),
    "parted in channels": lambda x: torch.cat(x.chunk(x.shape[1], dim=1), dim=1),
    "parted and turned": lambda x: torch.cat(x.chunk(x.shape[1], dim=1)[::-1], dim=1),
    "channels as frames": lambda x: _woven(torch.cat([x, x], dim=1)),
    "one less pixel": lambda x: x[..., 1:, :],
    "a scalar more": lambda x: x + 1,
    "sum of itself": lambda x: x + x,
}


def _woven(x):
    batch, channels, *size = x.shape
    x = x.reshape(batch, 2, channels // 2, *size)
    return torch.stack((x[:, 0], x[:, 1]), 3).reshape(batch, channels // 2, 2 * size[0], *size[1:])


class Program(nn.Module):
    """Moves between convolutions."""

    def __init__(self, moves, kernel, stride, padding):
        super().__init__()
        self.begin, self.moves = PaddingConv(2, 3), moves
        self.middle = nn.Conv3d(3, 4, kernel, stride, padding)
        self.end = PaddingConv(4, 2)

    def forward(self, x):
        x = self.begin(x)
        for move in self.moves:
            x = MOVES[move](x)
        return self.end(self.middle(x))


@settings(max_examples=60)
@given(
    moves=st.lists(st.sampled_from(sorted(MOVES)), max_size=4),
    frames=st.integers(1, 4),
    batch=st.integers(1, 2),
    kernel=st.sampled_from([(3, 3, 3), (1, 3, 3), (1, 1, 1), (3, 1, 1), (2, 3, 5)]),
    stride=st.sampled_from([(1, 1, 1), (1, 2, 2), (2, 1, 1), (2, 2, 2)]),
    padding=st.sampled_from([(0, 0, 0), (0, 1, 1), (1, 1, 1), (0, 0, 2)]),
)
def test_moves_before_a_convolution(moves, frames, batch, kernel, stride, padding):
    torch.manual_seed(0)
    module = Program(moves, kernel, stride, padding).double().eval().requires_grad_(False)
    x = torch.randn(batch, 2, frames, 5, 6, dtype=torch.float64)
    try:
        expected = module(x)
    except RuntimeError:  # too few frames for the kernel
        return
    if expected.numel() > 2**20:
        return
    handle = swap(module, backend="aten")
    tolerance = 1e-5 if "in float32" in moves else 1e-11
    for _ in range(2):
        torch.testing.assert_close(module(x), expected, rtol=tolerance, atol=tolerance)
    known = list(handle._link.coders.known.values())
    assert [k.why for k in known if k.schedule is None] == []


@pytest.mark.parametrize(
    ("moves", "op", "mode"),
    [
        (("first in front", "first in front"), "causal_conv3d", "replicate"),
        (("zeros in front", "zeros around"), "causal_conv3d", "zeros"),
        (("repeated", "zeros around"), "causal_conv3d", "replicate"),
        (("edges",), "causal_conv3d", "replicate"),
        (("zeros around",), "causal_conv3d", "valid"),
        (("larger", "zeros in front", "zeros around"), "upsample_conv", "zeros"),
        (("first one aside", "edges"), "upsample_conv", "replicate"),
        (("as images", "in float32", "zeros in front", "zeros around"), "causal_conv3d", "zeros"),
    ],
)
def test_a_convolution_sees_what_stands_in_front(moves, op, mode):
    """Nothing is copied, and the op is told what is there."""
    module = Program(moves, 3, 1, 0).eval().requires_grad_(False)
    if "in float32" in moves:
        module.moves = tuple(m for m in moves if m != "in float32")
    handle = swap(module)
    module(torch.randn(1, 2, 3, 5, 6))
    ((planned, *_),) = ([known.schedule.planned for known in handle._link.coders.known.values()],)
    steps = [p.step for p in planned]
    assert not any(isinstance(s, CallStep) for s in steps)
    middle = next(s for s in steps if isinstance(s, OpStep) and s.path == "middle")
    assert middle.op.name == op
    assert mode in middle.options or middle.temporal_mode == mode
