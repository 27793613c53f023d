"""Averages written straight into a padded buffer, then the framework's convolution of stride 2."""

from __future__ import annotations

import torch
from torch import Tensor

from ....core.backend import Backend
from ....core.layout import memory_format_of
from ....temporal.frame_buffer import FrameBuffer
from ...causal_conv3d.backends.aten import CONV
from ...causal_conv3d.spec import ConvArgs
from ...causal_pad3d.backends.aten import fill_border
from ..reference import downsample_conv_reference
from ..spec import HALO, STRIDE, DownsampleArgs


def _convolve(args: DownsampleArgs, precision: str) -> Tensor:
    if precision == "exact":
        return downsample_conv_reference(args)
    x = args.x
    buffer = FrameBuffer.empty(
        (*x.shape[:2], args.out_shape[2], *x.shape[3:]),
        head_room=0,
        halo=HALO,
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    if args.compress_time:
        average_into(buffer.body, x)
    else:
        buffer.body.copy_(x)
    fill_border(buffer.storage, None, 0, HALO, "zeros", "zeros")
    padded = ConvArgs(
        buffer.storage,
        args.weight,
        args.bias,
        stride=STRIDE,
        temporal_mode="valid",
        spatial_mode="valid",
    )
    return CONV.make(padded, precision)


def average_into(out: Tensor, x: Tensor) -> None:
    """Write the averages of pairs of frames, behind a first one that is left over."""
    lone = x.shape[2] % 2
    out[:, :, :lone].copy_(x[:, :, :lone])
    pairs = out[:, :, lone:]
    torch.mul(x[:, :, lone::2], 0.5, out=pairs)
    pairs.add_(x[:, :, lone + 1 :: 2], alpha=0.5)


DOWNSAMPLE = Backend("aten", make=_convolve)
