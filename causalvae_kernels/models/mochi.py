"""The rules for diffusers' `AutoencoderKLMochi`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..coder import record as recording
from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from . import cogvideox_conv
from .cogvideox_conv import conv_of
from .conv import Conv, convolve, leaves, why_weight_left
from .frame_norms import frame_norm, group_norm_frames
from .norms import takes_norms
from .recorded import coder
from .shuffles import pixels_to_channels
from .swap import Family, Link, Rule, register_family

Cache = dict[str, Any] | None
_CONV, _SAFE, _NORM = "CogVideoXCausalConv3d", "CogVideoXSafeConv3d", "MochiChunkedGroupNorm3D"


def causal_conv(
    module: nn.Module, link: Link, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, None]:
    """`CogVideoXCausalConv3d` of Mochi: repeated frames and pixels are read, not written; there is no cache.

    A downsampler's kernel is as large as its stride: what it reads becomes the channels of one pixel.
    """
    exact = resolve_precision(link.precision) == "exact"
    if leaves(link, inputs) or (exact and is_channels_last_3d(inputs)):
        return type(module).forward(module, inputs, conv_cache)
    if not _is_patch(module):
        return convolve(conv_of(module), link, inputs)
    factors = module.conv.kernel_size
    sizes = [size // factor * factor for size, factor in zip(inputs.shape[3:], factors[1:], strict=True)]
    if exact or 0 in sizes:
        return type(module).forward(module, inputs, conv_cache)
    frames = (inputs.shape[2] - 1) // factors[0] * factors[0] + 1
    inputs = inputs[:, :, :frames, : sizes[0], : sizes[1]]
    x = pixels_to_channels(inputs, factors, memory_format=torch.channels_last_3d, repeats_first=True)
    weight = module.conv.weight.flatten(1)[:, :, None, None, None]
    y, _ = convolve(Conv(weight, module.conv.bias), link, x)
    return y.contiguous(memory_format=memory_format_of(inputs)), None


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    if module.pad_mode != "replicate":
        return f"pad_mode is {module.pad_mode!r}, and the module was built for 'replicate'"
    if not _is_patch(module):
        return cogvideox_conv.why_conv_left(module)
    conv = module.conv
    if conv.groups != 1 or tuple(conv.dilation) != (1, 1, 1) or any(conv.padding):
        return f"its convolution is {conv}, the rule is for one without padding"
    return why_weight_left(conv)


def _is_patch(module: nn.Module) -> bool:
    """Whether the kernel is as large as the stride, and no pixel is padded."""
    conv = module.conv
    return tuple(conv.kernel_size) == tuple(conv.stride) and not (module.height_pad or module.width_pad)


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`MochiChunkedGroupNorm3D`: `group_norm` of each frame, all frames in one call."""
    if recording.current() is not None:
        frames = module.norm_layer(x.permute(0, 2, 1, 3, 4).flatten(0, 1))
        return frames.unflatten(0, (x.shape[0], -1)).permute(0, 2, 1, 3, 4)
    if leaves(link, x) or not takes_norms((module.norm_layer,), x):
        return type(module).forward(module, x)
    op = frame_norm(module.norm_layer, link)
    return group_norm_frames(x, *op.arguments, activation=None, **op.options)


register_family(
    Family(
        model="AutoencoderKLMochi",
        rules={
            "MochiEncoder3D": Rule(coder),
            "MochiDecoder3D": Rule(coder),
            # Where a module inside is hooked, the other blocks are still recorded.
            "MochiResnetBlock3D": Rule(coder),
            _NORM: Rule(norm, (("norm_layer", "GroupNorm"),), is_recorded=True),
            _CONV: Rule(causal_conv, (("conv", _SAFE),), why_conv_left, exact=True),
        },
        needs_no_rule={
            "Conv3d": "a pointwise convolution: nothing to pad",
            _SAFE: "the module that calls it pads",
            "GroupNorm": "the norm that it belongs to calls it",
            "Linear": "a matrix product over channels: of attention, or into and out of the model's widths",
        },
    )
)
