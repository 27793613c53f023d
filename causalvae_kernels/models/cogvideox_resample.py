"""CogVideoX's changes of resolution, each with its convolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops import downsample_conv, upsample_conv
from .conv import why_conv2d_left
from .frames import knows_first_chunk
from .swap import Link


def upsample(module: nn.Module, link: Link, inputs: Tensor, first_single: bool | None = None) -> Tensor:
    """`CogVideoXUpsample3D`: nothing is upsampled before the convolution; doubled frames are convolved once.

    Args:
        module: The upsampler.
        link: Of its swap.
        inputs: The frames.
        first_single: Whether time-doubling leaves the first frame single; default: as diffusers has it, which
            takes an odd number of frames for a first chunk.
    """
    if first_single is None:
        first_single = inputs.shape[2] % 2 == 1
    conv = module.conv
    return upsample_conv(
        inputs,
        conv.weight.unsqueeze(2),
        conv.bias,
        scale=(2 if module.compress_time else 1, 2, 2),
        first_chunk=first_single,
        backend=link.backend,
        precision=link.precision,
    )


def downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`CogVideoXDownsample3D`: one op averages pairs of frames, if asked, and convolves without padding."""
    conv = module.conv
    return downsample_conv(
        x,
        conv.weight.unsqueeze(2),
        conv.bias,
        compress_time=module.compress_time,
        backend=link.backend,
        precision=link.precision,
    )


def up_block(
    module: nn.Module,
    link: Link,
    hidden_states: Tensor,
    temb: Tensor | None = None,
    zq: Tensor | None = None,
    conv_cache: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """`CogVideoXUpBlock3D`: the first chunk is the one without a cache, not one of odd length.

    The upsampler at its end doubles frames in time and convolves them one by one, so a frame that was doubled
    and should not have been is two equal frames, and the mend is to drop or to repeat one.
    """
    out, cache = type(module).forward(module, hidden_states, temb, zq, conv_cache)
    frames, doubles = hidden_states.shape[2], module.upsamplers is not None
    doubles = doubles and any(u.compress_time for u in module.upsamplers)
    if doubles and knows_first_chunk():
        # Branches, not a comparison of booleans: the length is symbolic under a compiler.
        if frames % 2 == 0:
            if conv_cache is None:
                out = out[:, :, 1:]
        elif conv_cache is not None:
            out = torch.cat([out[:, :, :1], out], dim=2)
    return out, cache


def why_upsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXUpsample3D`, or None."""
    return why_conv2d_left(module.conv, stride=1, padding=1)


def why_downsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `CogVideoXDownsample3D`, or None."""
    return why_conv2d_left(module.conv, stride=2, padding=0)
