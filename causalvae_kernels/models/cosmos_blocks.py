"""The modules of Cosmos' VAE: convolutions over space and over time in turn, group norms of every frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import memory
from ..core.layout import is_channels_last_3d, memory_format_of
from ..core.precision import resolve_precision
from ..ops import downsample_conv, upsample_conv
from ..temporal import BufferPool, FrameBuffer
from .coders import pool_for
from .conv import Conv, added, convolve, leaves, may_write, why_weight_left
from .frame_norms import frame_norm
from .hooks import has_foreign_method, type_name, why_hooked
from .norms import NormOp, backend_options, group_norm, takes_norms
from .producers import activated, give
from .swap import Link, run

CONV, NORM = "CosmosCausalConv3d", "CosmosCausalGroupNorm"
_MODES = {"constant": "zeros", "replicate": "replicate", "reflect": "reflect"}


def causal_conv(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosCausalConv3d`."""
    x = hidden_states
    exact = resolve_precision(link.precision) == "exact"
    if leaves(link, x) or (exact and is_channels_last_3d(x)):
        return type(module).forward(module, x)
    return convolve(conv_of(module), link, x)[0]


def conv_of(module: nn.Module) -> Conv:
    """Return what a `CosmosCausalConv3d` computes."""
    padded = module.spatial_pad[0] or module.kernel_size[1:] == (1, 1)
    mode = _MODES[module.pad_mode] if padded else "valid"
    return Conv(module.weight, module.bias, stride=tuple(module.stride), spatial_mode=mode)


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    kernel, stride = tuple(module.kernel_size), tuple(module.stride)
    if module.temporal_pad != kernel[0] - 1:
        return f"it pads {module.temporal_pad} frames, expected {kernel[0] - 1}; a downsampler runs it"
    if tuple(module.dilation) != (1, 1, 1) or module.groups != 1 or any(module.padding):
        return f"it is {module}, the rule is for one without dilation, groups and padding of its own"
    if any(k % 2 == 0 for k in kernel[1:]) or not all(s in (1, 2) for s in stride):
        return f"kernel size {kernel} with stride {stride} is not one that causal_conv3d takes"
    if module.pad_mode not in _MODES:
        return f"pad_mode is {module.pad_mode!r}, expected one of {', '.join(_MODES)}"
    top, bottom, left, right = module.spatial_pad
    whole = ((kernel[1] - 1) // 2,) * 2 + ((kernel[2] - 1) // 2,) * 2
    if (top, bottom, left, right) not in (whole, (0, 0, 0, 0)):
        return f"it pads {module.spatial_pad} pixels, expected {whole} or none"
    return why_weight_left(module)


def norm(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosCausalGroupNorm`: one group is normalised frame by frame, several over the clip."""
    if leaves(link, hidden_states) or not takes_norms((module.norm,), hidden_states):
        return type(module).forward(module, hidden_states)
    op = norm_of(module, link)
    return op.op(hidden_states, *op.arguments, activation=None, **op.options)


def norm_of(module: nn.Module, link: Link) -> NormOp:
    """Return a `CosmosCausalGroupNorm` as an op."""
    return (frame_norm if module.num_groups == 1 else group_norm)(module.norm, link)


def resnet(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosResnetBlock3d`: norm and SiLU write what the convolution over space reads."""
    x = hidden_states
    if leaves(link, x) or not takes_norms((module.norm1.norm, module.norm2.norm), x):
        return type(module).forward(module, x)
    pool = pool_for(x)
    residual = module.conv_shortcut(x)
    first, second = module.conv1, module.conv2
    y = activated(norm_of(module.norm1, link), link, conv_of(first.conv_s), x, pool=pool)
    hidden = project(first, link, y, pool=pool)
    if module.dropout.training and module.dropout.p > 0:
        y = module.dropout(activated(norm_of(module.norm2, link), link, None, hidden))
    else:
        y = activated(
            norm_of(module.norm2, link), link, conv_of(second.conv_s), hidden, overwrite=True, pool=pool
        )
    del hidden
    return project(second, link, y, residual, pool)


def project(
    module: nn.Module,
    link: Link,
    y: Tensor | FrameBuffer,
    residual: Tensor | None = None,
    pool: BufferPool | None = None,
) -> Tensor:
    """Run both convolutions of a `CosmosConvProjection3d` over what is nobody else's; add the residual."""
    hidden, _ = convolve(conv_of(module.conv_s), link, y, pool=pool)
    give(pool, y)
    del y
    out, _ = convolve(conv_of(module.conv_t), link, hidden, residual=residual, pool=pool)
    give(pool, hidden)
    return out


def why_projection_left(module: nn.Module) -> str | None:
    """Return why a `CosmosConvProjection3d` is not what `project` computes, or None."""
    return why_conv_left(module.conv_s) or why_conv_left(module.conv_t)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this residual block, or None."""
    return why_projection_left(module.conv1) or why_projection_left(module.conv2)


def attention(
    module: nn.Module, link: Link, hidden_states: Tensor, attention_mask: Tensor | None = None
) -> Tensor:
    """`CosmosCausalAttention` as it is, but for the layout of its result: that of what it was given."""
    out = type(module).forward(module, hidden_states, attention_mask)
    return out.contiguous(memory_format=memory_format_of(hidden_states))


def downsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosDownsample3d`: convolutions of stride 2 plus averages of what they skip, nothing padded."""
    x = hidden_states
    odd = module.spatial_downsample and (x.shape[3] % 2 or x.shape[4] % 2)
    if leaves(link, x) or odd:
        return type(module).forward(module, x)
    if module.spatial_downsample:
        y = downsample_conv(x, module.conv1.weight, module.conv1.bias, **backend_options(link))
        x = added(y, _averaged(x))
    if module.temporal_downsample:
        residual, pairs = x[:, :, :1], (x.shape[2] - 1) // 2
        if pairs:
            second, third = x[:, :, 1 : 2 * pairs + 1].unflatten(2, (pairs, 2)).unbind(3)
            residual = torch.cat([residual, (second + third) * 0.5], dim=2)
        conv = Conv(module.conv2.weight, module.conv2.bias, stride=(2, 1, 1))
        x, _ = convolve(conv, link, x, residual=residual)
    return module.conv3(x) if module.spatial_downsample or module.temporal_downsample else x


def _averaged(x: Tensor) -> Tensor:
    """Return the mean of every 2x2 pixels, in the layout of `x`: the framework's average in 3D has but one.

    And it knows no half precision on a CPU, where the model cannot encode in it.
    """
    if is_channels_last_3d(x):
        frames = x.transpose(1, 2)
        return F.avg_pool2d(frames.flatten(0, 1), 2).unflatten(0, frames.shape[:2]).transpose(1, 2)
    return F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])


def upsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`CosmosUpsample3d`: pixels are repeated by the convolution, frames in one write."""
    x = hidden_states
    if leaves(link, x):
        return type(module).forward(module, x)
    if module.temporal_upsample:
        x = _doubled(x)
        x, _ = convolve(conv_of(module.conv1), link, x, residual=x)
    if module.spatial_upsample:
        y = upsample_conv(x, module.conv2.weight, module.conv2.bias, scale=(1, 2, 2), **backend_options(link))
        pixels = y.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
        repeated = added(pixels, x.unsqueeze(4).unsqueeze(6))
        # A view of one batch has any stride for it, by which nobody would know the layout again.
        x = y if repeated is pixels else repeated.flatten(5, 6).flatten(3, 4)
    return module.conv3(x) if module.spatial_upsample or module.temporal_upsample else x


def _doubled(x: Tensor) -> Tensor:
    """Return every frame twice but for the first one."""
    if x.shape[2] == 1:
        return x
    if not may_write(x):
        return x.repeat_interleave(2, dim=2)[:, :, 1:]
    batch, channels, frames, height, width = x.shape
    out = memory.empty(
        (batch, channels, 2 * frames - 1, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    out[:, :, :1].copy_(x[:, :, :1])
    out[:, :, 1:].unflatten(2, (-1, 2)).copy_(x[:, :, 1:].unsqueeze(3))
    return out


def why_downsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this downsampler, or None."""
    spatial = ((1, 3, 3), (1, 2, 2), 0, 0)
    temporal = ((3, 1, 1), (2, 1, 1), 1, 0)
    return _why_unlike(module.conv1, spatial if module.spatial_downsample else None) or _why_unlike(
        module.conv2, temporal if module.temporal_downsample else None
    )


def why_upsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this upsampler, or None."""
    temporal = ((3, 1, 1), (1, 1, 1), 2, 0)
    spatial = ((1, 3, 3), (1, 1, 1), 0, 1)
    return _why_unlike(module.conv1, temporal if module.temporal_upsample else None) or _why_unlike(
        module.conv2, spatial if module.spatial_upsample else None
    )


def _why_unlike(conv: nn.Module, expected: tuple[object, ...] | None) -> str | None:
    """Return why a sampler's convolution, if it has one, must be called or is not what is expected."""
    if expected is None:
        return None
    if type_name(conv) != CONV:
        return f"its convolution is a {type_name(conv)}, expected {CONV}"
    hooked = why_hooked(conv)
    if hooked is not None or has_foreign_method(conv, run):
        return f"its convolution must be called: {hooked or 'its forward was replaced by someone else'}"
    found = (tuple(conv.kernel_size), tuple(conv.stride), conv.temporal_pad, conv.spatial_pad[0])
    plain = (tuple(conv.dilation), conv.groups, conv.pad_mode, any(conv.padding))
    if found != expected or plain != ((1, 1, 1), 1, "constant", False):
        return f"its convolution is {conv}, the rule is for {expected}"
    return why_weight_left(conv)
