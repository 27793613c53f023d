"""The modules of LTX-Video's and LTX-2's VAEs: convolutions, residual blocks, changes of resolution.

LTX-2 differs in words: whether a convolution is causal is said in every call, its RMS norm is a class of its
own, and the shortcut is a plain convolution. Both may look ahead: half of the frames of padding stand behind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from ..temporal import BufferPool, FrameBuffer
from .coders import pool_for
from .conv import Conv, added, convolve, leaves, why_conv3d_left
from .norms import rms_norm, takes
from .producers import activated, give, silu
from .shuffles import channels_to_pixels, fits_blocks, pixels_to_channels
from .swap import Link


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`LTXVideoCausalConv3d`."""
    if _keeps_conv(link, hidden_states):
        return type(module).forward(module, hidden_states)
    return convolve(conv_of(module, module.is_causal, hidden_states), link, hidden_states)[0]


def causal_conv2(module: nn.Module, link: Link, hidden_states: Tensor, causal: bool = True) -> Tensor:
    """`LTX2VideoCausalConv3d`."""
    if _keeps_conv(link, hidden_states):
        return type(module).forward(module, hidden_states, causal)
    return convolve(conv_of(module, causal, hidden_states), link, hidden_states)[0]


def _keeps_conv(link: Link, x: Tensor) -> bool:
    """Whether the original convolves: small or no frames, or a layout that its `cat` changes."""
    exact = resolve_precision(link.precision) == "exact"
    return leaves(link, x) or (exact and is_channels_last_3d(x))


def conv_of(module: nn.Module, causal: bool, x: Tensor) -> Conv:
    """Return what an `LTXVideoCausalConv3d` or `LTX2VideoCausalConv3d` computes of frames like these.

    Copies of a single frame may as well all stand in front of it: then the op knows them for equal.
    """
    conv = module.conv
    tail_room = 0 if causal or x.shape[2] == 1 else (conv.kernel_size[0] - 1) // 2
    return Conv(
        conv.weight, conv.bias, stride=conv.stride, spatial_mode=conv.padding_mode, tail_room=tail_room
    )


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    conv = module.conv
    if tuple(conv.kernel_size) != tuple(module.kernel_size):
        return f"kernel size is {conv.kernel_size}, the module pads for {module.kernel_size}"
    if conv.kernel_size[0] % 2 == 0:
        return f"kernel size is {conv.kernel_size}: an even number of frames has no middle one"
    padding = (0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    return why_conv3d_left(conv, padding, ("zeros", "reflect", "replicate"))


def resnet(
    module: nn.Module,
    link: Link,
    inputs: Tensor,
    temb: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`LTXVideoResnetBlock3d`: norm and SiLU write into the convolution's padded buffer."""
    if leaves(link, inputs):
        return type(module).forward(module, inputs, temb, generator)
    return _residual_block(module, link, inputs, temb, generator, module.conv1.is_causal)


def resnet2(
    module: nn.Module,
    link: Link,
    inputs: Tensor,
    temb: Tensor | None = None,
    generator: torch.Generator | None = None,
    causal: bool = True,
) -> Tensor:
    """`LTX2VideoResnetBlock3d`."""
    if leaves(link, inputs):
        return type(module).forward(module, inputs, temb, generator, causal)
    return _residual_block(module, link, inputs, temb, generator, causal)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this residual block, or None."""
    norms = why_norm_left(module.norm1) or why_norm_left(module.norm2)
    convolutions = why_conv_left(module.conv1) or why_conv_left(module.conv2)
    if norms or convolutions:
        return norms or convolutions
    if getattr(module.conv1, "is_causal", None) != getattr(module.conv2, "is_causal", None):
        return "one of its convolutions is causal and the other is not"
    return None


def why_norm_left(norm: nn.Module) -> str | None:
    """Return why an `RMSNorm` or `PerChannelRMSNorm` is not what `ops.rms_norm` computes, or None."""
    if norm._parameters.get("weight") is not None:
        return "its norm has a weight, which LTX's have not"
    if getattr(norm, "channel_dim", 1) != 1:
        return f"its norm is over dimension {norm.channel_dim}, expected 1"
    return None


def _residual_block(
    module: nn.Module,
    link: Link,
    inputs: Tensor,
    temb: Tensor | None,
    generator: torch.Generator | None,
    causal: bool,
) -> Tensor:
    shifts = scales = (None, None)
    if module.scale_shift_table is not None:
        table = temb.unflatten(1, (4, -1)) + module.scale_shift_table[None, ..., None, None, None]
        shift_1, scale_1, shift_2, scale_2 = table.unbind(dim=1)
        shifts, scales = (shift_1, shift_2), (scale_1, scale_2)
    pool = pool_for(inputs)
    conv = conv_of(module.conv1, causal, inputs)
    y = norm_silu(module.norm1, link, conv, inputs, scales[0], shifts[0], pool=pool)
    hidden, _ = convolve(conv, link, y, pool=pool)
    give(pool, y)
    hidden = _with_noise(hidden, module.per_channel_scale1, generator)
    conv = conv_of(module.conv2, causal, hidden)
    if module.dropout.training and module.dropout.p > 0:
        y = module.dropout(norm_silu(module.norm2, link, None, hidden, scales[1], shifts[1]))
    else:
        y = norm_silu(module.norm2, link, conv, hidden, scales[1], shifts[1], overwrite=True, pool=pool)
    if y is not hidden:
        give(pool, hidden)
    del hidden
    if module.norm3 is not None:
        inputs = module.norm3(inputs.movedim(1, -1)).movedim(-1, 1)
    if module.conv_shortcut is not None:
        inputs = module.conv_shortcut(inputs)
    hidden, _ = convolve(conv, link, y, residual=inputs, pool=pool)
    return _with_noise(hidden, module.per_channel_scale2, generator)


def norm_silu(
    norm: nn.Module,
    link: Link,
    conv: Conv | None,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    overwrite: bool = False,
    pool: BufferPool | None = None,
) -> Tensor | FrameBuffer:
    """Return SiLU of norm(x) * (1 + scale) + shift, where possible in the memory that `conv` reads.

    Args:
        norm: An `RMSNorm` or `PerChannelRMSNorm`.
        link: Of the swap.
        conv: What reads the result; None: anything.
        x: The activation.
        scale: Shape (B, C, 1, 1, 1), or None.
        shift: Shape (B, C, 1, 1, 1), or None.
        overwrite: Whether `x` may be overwritten.
        pool: Where the memory comes from, or None.
    """
    ones = x.new_ones(x.shape[1])
    if scale is None:
        op = rms_norm(ones, None, link, norm.eps)
        return activated(op, link, conv, x, overwrite=overwrite, pool=pool)
    factors = (1 + scale).flatten(), shift.flatten()
    if x.shape[0] == 1 and takes(factors, x) and torch.promote_types(x.dtype, factors[0].dtype) == x.dtype:
        op = rms_norm(*factors, link, norm.eps)
        return activated(op, link, conv, x, overwrite=overwrite, pool=pool)
    y = rms_norm(ones, None, link, norm.eps)(x, activation=None) * (1 + scale) + shift
    return silu(link, conv, y, pool)


def _with_noise(x: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Return `x` with one frame of noise, times a factor per channel, added to all frames."""
    if scale is None:
        return x
    noise = torch.randn(x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
    return x + (noise[None] * scale)[None, :, None]


def upsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`LTXVideoUpsampler3d`: convolution, residual and pixel shuffle in one write behind the convolution."""
    if leaves(link, hidden_states):
        return type(module).forward(module, hidden_states)
    return _upsample(module, link, hidden_states, module.conv.is_causal)


def upsample2(module: nn.Module, link: Link, hidden_states: Tensor, causal: bool = True) -> Tensor:
    """`LTX2VideoUpsampler3d`."""
    if leaves(link, hidden_states):
        return type(module).forward(module, hidden_states, causal)
    return _upsample(module, link, hidden_states, causal)


def _upsample(module: nn.Module, link: Link, x: Tensor, causal: bool) -> Tensor:
    y, _ = convolve(conv_of(module.conv, causal, x), link, x)
    return channels_to_pixels(
        y,
        module.stride,
        memory_format=memory_format_of(x),
        drops_lead=True,
        residual=x if module.residual else None,
    )


def downsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`LTXVideoDownsampler3d`: the doubled first frame is convolved once."""
    if _keeps_downsampler(module, link, hidden_states, module.conv.is_causal):
        return type(module).forward(module, hidden_states)
    return _downsample(module, link, hidden_states, module.conv.is_causal)


def downsample2(module: nn.Module, link: Link, hidden_states: Tensor, causal: bool = True) -> Tensor:
    """`LTX2VideoDownsampler3d`."""
    if _keeps_downsampler(module, link, hidden_states, causal):
        return type(module).forward(module, hidden_states, causal)
    return _downsample(module, link, hidden_states, causal)


def _keeps_downsampler(module: nn.Module, link: Link, x: Tensor, causal: bool) -> bool:
    """Whether the original runs: a kernel that looks ahead sees two different frames behind equal ones."""
    if leaves(link, x) or module.stride[0] > 2:
        return True
    return not (causal or module.stride[0] == 1) or not fits_blocks(x.shape, module.stride, True)


def _downsample(module: nn.Module, link: Link, x: Tensor, causal: bool) -> Tensor:
    options: dict[str, Any] = {"memory_format": memory_format_of(x), "repeats_first": True}
    y, _ = convolve(conv_of(module.conv, causal, x), link, x)
    y = pixels_to_channels(y, module.stride, **options)
    residual = pixels_to_channels(x, module.stride, **options)
    if module.group_size > 1:
        residual = residual.unflatten(1, (-1, module.group_size)).mean(dim=2)
    return added(y, residual)
