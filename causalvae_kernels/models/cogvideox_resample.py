"""CogVideoX's changes of resolution, each with its convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..ops import causal_conv3d
from ..temporal import FrameBuffer
from .cogvideox_conv import may_write, why_weight_left
from .frames import knows_first_chunk
from .swap import Link


def upsample(module: nn.Module, link: Link, inputs: Tensor) -> Tensor:
    """`CogVideoXUpsample3D`: frames that time-doubling makes equal are convolved once, then repeated."""
    frames = inputs.shape[2]
    wide = F.interpolate(inputs, scale_factor=(1.0, 2.0, 2.0))
    out = _convolve_frames(module.conv, link, wide, spatial_mode="zeros")
    if not module.compress_time or frames == 1:
        return out
    source = torch.arange(2 * frames, device=inputs.device) // 2
    return out.index_select(2, source[1:] if frames % 2 else source)


def downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`CogVideoXDownsample3D`: pairs of frames are averaged straight into the padded buffer."""
    frames = x.shape[2]
    averages = module.compress_time and frames > 1
    lone = frames % 2 if averages else frames
    halo = (0, 1, 0, 1)
    if not may_write(x):
        if averages:
            pairs = 0.5 * x[:, :, lone::2] + 0.5 * x[:, :, lone + 1 :: 2]
            x = torch.cat([x[:, :, :lone], pairs], dim=2)
        return _convolve_frames(module.conv, link, F.pad(x, (0, 1, 0, 1)), spatial_mode="valid")
    shape = (*x.shape[:2], lone + (frames - lone) // 2, *x.shape[3:])
    buffer = FrameBuffer.empty(
        shape, head_room=0, halo=halo, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x)
    )
    buffer.body[:, :, :lone].copy_(x[:, :, :lone])
    if averages:
        pairs = buffer.body[:, :, lone:]
        # Halving first is exact and cannot overflow float16; the sum is rounded once, as in avg_pool1d.
        torch.mul(x[:, :, lone::2], 0.5, out=pairs)
        pairs.add_(x[:, :, lone + 1 :: 2], alpha=0.5)
    return _convolve_frames(module.conv, link, buffer, spatial_mode="zeros")


def up_block(
    module: nn.Module,
    link: Link,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    zq: Tensor | None = None,
    conv_cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXUpBlock3D` that is told by the absent cache, not by an odd length, which chunk is the first.

    The upsampler at its end doubles frames in time and convolves them one by one, so a frame that was doubled
    and should not have been is two equal frames, and the mend is to drop or to repeat one.
    """
    out, cache = type(module).forward(module, hidden_states, temb, zq, conv_cache)
    return mend_first_chunk(module, out, hidden_states.shape[2], conv_cache), cache


def mend_first_chunk(module: nn.Module, out: Tensor, frames: int, conv_cache: object) -> Tensor:
    """Return what an up-block gives that is told by the absent cache which chunk is the first.

    Args:
        module: The block.
        out: What it gave, going by the number of frames.
        frames: That went in.
        conv_cache: As it was passed.
    """
    doubles = module.upsamplers is not None and any(u.compress_time for u in module.upsamplers)
    if doubles and knows_first_chunk():
        # Branches, not a comparison of booleans: the length is symbolic under a compiler.
        if frames % 2 == 0:
            if conv_cache is None:
                out = out[:, :, 1:]
        elif conv_cache is not None:
            out = torch.cat([out[:, :, :1], out], dim=2)
    return out


def _convolve_frames(conv: nn.Conv2d, link: Link, x: Tensor | FrameBuffer, *, spatial_mode: str) -> Tensor:
    """Convolve every frame on its own: a causal convolution with kT = 1."""
    return causal_conv3d(
        x,
        conv.weight.unsqueeze(2),
        conv.bias,
        stride=(1, *conv.stride),
        spatial_mode=spatial_mode,
        backend=link.backend,
        precision=link.precision,
    )


def _why_resample_left(module: nn.Module, stride: int, padding: int) -> str | None:
    conv = module.conv
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    expected = ((3, 3), (stride, stride), (padding, padding), (1, 1), 1, "zeros")
    if found != expected:
        return f"its convolution is {conv}, the rule is for {expected}"
    return why_weight_left(conv)


def why_upsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXUpsample3D`, or None."""
    return _why_resample_left(module, stride=1, padding=1)


def why_downsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXDownsample3D`, or None."""
    return _why_resample_left(module, stride=2, padding=0)
