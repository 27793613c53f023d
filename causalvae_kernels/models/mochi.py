"""The rules for diffusers' `AutoencoderKLMochi`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from . import cogvideox_conv
from .coders import pool_for
from .cogvideox_conv import conv_of
from .conv import Conv, convolve, is_small, leaves, why_weight_left
from .frame_norms import frame_norm, group_norm_frames, inner_format
from .norms import takes_norms
from .producers import activated, give
from .shuffles import channels_to_pixels, pixels_to_channels
from .swap import Family, Link, Rule, register_family

Cache = dict[str, Any] | None
_CONV, _SAFE, _NORM = "CogVideoXCausalConv3d", "CogVideoXSafeConv3d", "MochiChunkedGroupNorm3D"


def causal_conv(
    module: nn.Module, link: Link, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, None]:
    """Mochi's `CogVideoXCausalConv3d`, which repeats frames and pixels and has no cache.

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
    """`MochiChunkedGroupNorm3D`: every frame by itself, so that chunks of frames make no difference."""
    if leaves(link, x) or not takes_norms((module.norm_layer,), x):
        return type(module).forward(module, x)
    op = frame_norm(module.norm_layer, link)
    return group_norm_frames(x, *op.arguments, activation=None, **op.options)


def resnet(
    module: nn.Module, link: Link, inputs: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, None]]:
    """`MochiResnetBlock3D`: norm and SiLU write into the convolution's padded buffer."""
    norm1, norm2 = module.norm1.norm_layer, module.norm2.norm_layer
    if leaves(link, inputs) or not takes_norms((norm1, norm2), inputs):
        return type(module).forward(module, inputs, conv_cache)
    pool = pool_for(inputs)
    conv = conv_of(module.conv1)
    y = activated(frame_norm(norm1, link), link, conv, inputs, pool=pool)
    hidden, _ = convolve(conv, link, y, pool=pool)
    give(pool, y)
    conv = conv_of(module.conv2)
    y = activated(frame_norm(norm2, link), link, conv, hidden, overwrite=True, pool=pool)
    del hidden
    hidden, _ = convolve(conv, link, y, residual=inputs, pool=pool)
    return hidden, {"conv1": None, "conv2": None}


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this residual block, or None."""
    return why_conv_left(module.conv1) or why_conv_left(module.conv2)


def up_block(
    module: nn.Module, link: Link, hidden_states: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`MochiUpBlock3D`: the pixel shuffle is one write, in the layout of the activations."""
    blocks = {f"resnet_{i}": block for i, block in enumerate(module.resnets)}
    x, new_cache = _run(module, blocks, hidden_states, conv_cache)
    layout = memory_format_of(x)
    x = module.proj(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    space = module.spatial_expansion
    factors = (module.temporal_expansion, space, space)
    return channels_to_pixels(x, factors, memory_format=layout), new_cache


def decoder(
    module: nn.Module, link: Link, hidden_states: Tensor, conv_cache: Cache = None
) -> tuple[Tensor, dict[str, Any]]:
    """`MochiDecoder3D`, channels last from its first convolution on; its frames always are."""
    x = hidden_states
    if x.numel() == 0 or is_small(link, x):
        return type(module).forward(module, x, conv_cache)
    example = module.block_in.resnets[0].norm1.norm_layer
    layout = inner_format(module, link, x, example, (_NORM, "MochiResnetBlock3D"))
    x = module.conv_in(x).contiguous(memory_format=layout)
    blocks = {f"up_block_{i}": block for i, block in enumerate(module.up_blocks)}
    x, new_cache = _run(module, {"block_in": module.block_in, **blocks}, x, conv_cache)
    x, new_cache["block_out"] = module.block_out(x, conv_cache=(conv_cache or {}).get("block_out"))
    x = module.nonlinearity(x).permute(0, 2, 3, 4, 1)
    return module.proj_out(x).permute(0, 4, 1, 2, 3), new_cache


def _run(
    module: nn.Module, blocks: dict[str, nn.Module], x: Tensor, conv_cache: Cache
) -> tuple[Tensor, dict[str, Any]]:
    """Run blocks by the names of their caches, with checkpoints if the module has them."""
    cache, new_cache = conv_cache or {}, {}
    for key, block in blocks.items():
        if torch.is_grad_enabled() and module.gradient_checkpointing:
            x, new_cache[key] = module._gradient_checkpointing_func(block, x, cache.get(key))
        else:
            x, new_cache[key] = block(x, conv_cache=cache.get(key))
    return x, new_cache


def why_decoder_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this decoder, or None."""
    if module.block_in.resnets and hasattr(module.block_in.resnets[0].norm1, "norm_layer"):
        return None
    return "its first block has no residual block"


register_family(
    Family(
        model="AutoencoderKLMochi",
        rules={
            "MochiDecoder3D": Rule(decoder, why_left=why_decoder_left),
            "MochiUpBlock3D": Rule(up_block),
            "MochiResnetBlock3D": Rule(
                resnet,
                (
                    ("nonlinearity", "SiLU"),
                    ("norm1", _NORM),
                    ("norm1.norm_layer", "GroupNorm"),
                    ("conv1", _CONV),
                    ("conv1.conv", _SAFE),
                    ("norm2", _NORM),
                    ("norm2.norm_layer", "GroupNorm"),
                    ("conv2", _CONV),
                    ("conv2.conv", _SAFE),
                ),
                why_resnet_left,
            ),
            _NORM: Rule(norm, (("norm_layer", "GroupNorm"),)),
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
