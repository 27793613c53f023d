"""The rules for diffusers' `AutoencoderKLKVAEVideo`: segments of frames, and caches in dictionaries."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.precision import autocast_dtype
from ..ops import causal_conv3d
from ..temporal import FrameBuffer
from .conv import Conv, added, convolve, is_small, may_write, why_conv3d_left, why_weight_left
from .hooks import is_plain, type_name
from .norms import NormOp, backend_options, group_norm, scaled_group_norm, takes
from .producers import activated, silu
from .swap import Family, Link, Rule, register_family, rule_at_work, run

_CONV, _SAFE = "KVAECachedCausalConv3d", "KVAESafeConv3d"
_NORM, _SPATIAL = "KVAECachedGroupNorm", "KVAECachedSpatialNorm3D"


def cached_conv(module: nn.Module, link: Link, input: Tensor, cache: dict[str, Any]) -> Tensor:
    """`KVAECachedCausalConv3d`: one convolution, which repeats frames and pixels itself; caches as before."""
    if is_small(link, input) or not _fits(module, input, cache):
        return type(module).forward(module, input, cache)
    if module.stride[0] == 1:
        return _stream(module, link, input, cache)
    past = _past(module, cache)
    conv, step, kernel = _conv_of(module), module.stride[0], module.time_kernel_size
    options = conv.options(link)
    if past is None:
        length, y = kernel - 1, causal_conv3d(input, conv.weight, conv.bias, **options)
    else:
        length, seen = past.shape[2], torch.cat([past, input], dim=2)
        y = causal_conv3d(seen, conv.weight, conv.bias, **{**options, "temporal_mode": "valid"})
    # The next window begins at a multiple of the stride, counted from the first of the past.
    begin = math.ceil(length / step) * step - length
    begin += step * int((input.shape[2] - begin - kernel) / step) + step
    cache["padding"] = _with_edges(module, input[:, :, begin:])
    return y.to(input.dtype)  # as the model has it, under autocast too


def why_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `KVAECachedCausalConv3d`, or None."""
    kernel, stride = module.conv.kernel_size, module.conv.stride
    if kernel[1] != kernel[2] or tuple(stride) != (module.stride[0], 1, 1) or kernel[0] == 1:
        return f"kernel size {kernel} with stride {stride}: the rule is for square ones of some frames"
    if (module.height_pad, module.time_kernel_size) != (kernel[1] // 2, kernel[0]):
        return "its padding is not the one that it was built with"
    return why_conv3d_left(module.conv, (0, 0, 0))


def safe_conv(module: nn.Module, link: Link, input: Tensor, write_to: Tensor | None = None) -> Tensor:
    """`KVAESafeConv3d` or `Conv3d`: nothing is padded in time; written where the caller wants it."""
    arguments, mode = (input, module.weight, module.bias), _spatial_mode(module)
    least = [k if mode == "valid" else (k + 1) // 2 for k in module.kernel_size[1:]]
    sizes = (module.kernel_size[0], *(least if mode != "zeros" else (1, 1)))
    fits = input.dim() == 5 and all(n >= m for n, m in zip(input.shape[2:], sizes, strict=True))
    if not fits or is_small(link, input):
        return _original(module, input, write_to)
    options = {"stride": tuple(module.stride), "temporal_mode": "valid", "spatial_mode": mode}
    options |= backend_options(link)
    if write_to is None:
        return causal_conv3d(*arguments, **options)
    if autocast_dtype(input) is not None or not may_write(write_to, *arguments):
        return _original(module, input, write_to)
    return causal_conv3d(*arguments, out=write_to, **options)


def why_safe_conv_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this convolution, or None."""
    kernel = module.kernel_size
    if any(k % 2 == 0 for k in kernel[1:]) or not set(module.stride) <= {1, 2}:
        return f"kernel size {kernel} with stride {module.stride} is not one that causal_conv3d takes"
    paddings = ((0, 0, 0), (0, (kernel[1] - 1) // 2, (kernel[2] - 1) // 2))
    if module.groups != 1 or set(module.dilation) != {1} or tuple(module.padding) not in paddings:
        return f"its convolution is {module}"
    if module.padding_mode not in ("zeros", "reflect"):
        return f"its padding_mode is {module.padding_mode!r}"
    return why_weight_left(module)


def _spatial_mode(module: nn.Module) -> str:
    if max(module.padding) == 0:
        return "valid"
    return "reflect" if module.padding_mode == "reflect" else "zeros"


def resnet(
    module: nn.Module, link: Link, x: Tensor, temb: Tensor | None, layer_cache: dict, zq: Tensor | None = None
) -> Tensor:
    """`KVAECachedResnetBlock3D`: norm and SiLU are written where a convolution reads; the second one adds."""
    # The second convolution sees as many frames and pixels as the first.
    fits = _fits(module.conv1, x, layer_cache["conv1"]) and _fits(module.conv2, x, layer_cache["conv2"])
    if is_small(link, x) or not fits:
        return type(module).forward(module, x, temb, layer_cache, zq)
    shortcut = x
    if module.in_channels != module.out_channels and not module.use_conv_shortcut:
        shortcut = module.nin_shortcut(x)
    elif module.in_channels != module.out_channels:
        shortcut = module.conv_shortcut(x, cache=layer_cache["conv_shortcut"])
    y = _activated(module.norm1, link, module.conv1, x, zq, layer_cache["norm1"])
    hidden = _stream(module.conv1, link, y, layer_cache["conv1"])
    if temb is not None:
        hidden = hidden + module.temb_proj(F.silu(temb))[:, :, None, None, None]
    y = _activated(module.norm2, link, module.conv2, hidden, zq, layer_cache["norm2"], owned=True)
    return _stream(module.conv2, link, y, layer_cache["conv2"], shortcut)


def why_resnet_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this residual block, or None."""
    if module.conv1.stride[0] != 1 or module.conv2.stride[0] != 1:
        return "its convolutions have a stride"
    return why_conv_left(module.conv1) or why_conv_left(module.conv2)


def spatial_norm(module: nn.Module, link: Link, f: Tensor, zq: Tensor, cache: dict[str, Any]) -> Tensor:
    """`KVAECachedSpatialNorm3D`: its two pointwise convolutions run before the upsampling of the latents."""
    norm = _spatial(module, link, f, zq, cache)
    if is_small(link, f) or norm is None:
        return type(module).forward(module, f, zq, cache)
    _mark(cache["norm"])
    return norm(f, activation=None)


def why_spatial_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this spatial norm, or None."""
    return "it convolves the upsampled latents before" if module.add_conv else None


def _original(module: nn.Module, input: Tensor, write_to: Tensor | None) -> Tensor:
    if write_to is None:
        return type(module).forward(module, input)
    return type(module).forward(module, input, write_to)


def _stream(
    module: nn.Module, link: Link, x: Tensor | FrameBuffer, cache: dict, residual: Tensor | None = None
) -> Tensor:
    body = x.body if isinstance(x, FrameBuffer) else x
    # Under autocast the model adds to what it has cast back to the dtype of the input.
    fused = residual if autocast_dtype(body) is None else None
    y, state = convolve(_conv_of(module), link, x, _past(module, cache), fused)
    y = y.to(body.dtype)
    y = y if fused is residual else added(y, residual)
    frames, past = body.shape[2], module.time_kernel_size - 1
    # A segment that is shorter leaves fewer frames in diffusers.
    kept = past if frames >= past else min(past - frames, frames)
    cache["padding"] = _with_edges(module, state[:, :, past - kept :])
    return y


def _conv_of(module: nn.Module) -> Conv:
    conv = module.conv
    stride = tuple(conv.stride)
    return Conv(conv.weight, conv.bias, stride, spatial_mode="replicate", streams=stride[0] == 1)


def _with_edges(module: nn.Module, frames: Tensor) -> Tensor:
    """Return frames as the cache holds them: with the pixels that are repeated around them."""
    pad = module.height_pad
    return F.pad(frames, (pad, pad, pad, pad, 0, 0), mode="replicate") if pad else frames.clone()


def _past(module: nn.Module, cache: dict[str, Any]) -> Tensor | None:
    """Return the cache's frames without the pixels that are repeated around them."""
    past, pad = cache["padding"], module.height_pad
    return past if past is None or pad == 0 else past[:, :, :, pad:-pad, pad:-pad]


def _fits(module: nn.Module, x: Tensor, cache: dict[str, Any]) -> bool:
    """Whether this is a call for the op: diffusers also takes segments that leave a window unfinished."""
    if x.dim() != 5 or x.numel() == 0:
        return False
    past, kernel, step = _past(module, cache), module.time_kernel_size, module.stride[0]
    length = kernel - 1 if past is None else past.shape[2]
    if past is not None:
        alike = (*past.shape[:2], *past.shape[3:]) == (*x.shape[:2], *x.shape[3:]) and past.dtype == x.dtype
        if not alike or length == 0 or (step == 1 and length != kernel - 1):
            return False
    windows = (length + x.shape[2] - kernel) // step + 1
    return windows == ((x.shape[2] + 1) // 2 if step == 2 else x.shape[2])


def _activated(
    norm: nn.Module,
    link: Link,
    conv: nn.Module,
    x: Tensor,
    zq: Tensor | None,
    cache: dict[str, Any],
    *,
    owned: bool = False,
) -> Tensor | FrameBuffer:
    """Return SiLU of a norm of `x`, where possible in the memory that `conv` reads."""
    found = None
    if zq is not None and rule_at_work(norm, link) is not None:
        found, marks = _spatial(norm, link, x, zq, cache), cache["norm"]
    elif zq is None and type_name(norm) == _NORM and is_plain(norm, run) and is_plain(norm.norm_layer, run):
        layer, marks = norm.norm_layer, cache
        found = group_norm(layer, link) if takes((layer.weight, layer.bias), x) else None
    memory = _conv_of(conv)
    if found is None:
        return silu(link, memory, norm(x, cache=cache) if zq is None else norm(x, zq, cache=cache))
    _mark(marks)
    return activated(found, link, memory, x, overwrite=owned)


def _spatial(norm: nn.Module, link: Link, x: Tensor, zq: Tensor, cache: dict[str, Any]) -> NormOp | None:
    """Return the spatial norm as an op whose factors have the latents' size; None: not of such a call."""
    first = cache["norm"].get("mean") is None and cache["norm"].get("var") is None
    frames, latents, layer = x.shape[2], zq.shape[2], norm.norm_layer.norm_layer
    if frames == 1:
        alike = latents == 1
    else:
        # The op takes an odd number of frames for a first segment, whose first frame stands alone.
        alike = (frames % 2 == 1) == first and (latents > 1 or not first)
    if not alike or not takes((layer.weight, layer.bias), x):
        return None
    return scaled_group_norm(layer, link, norm.conv_y(zq), norm.conv_b(zq), x)


def _mark(cache: dict[str, Any]) -> None:
    """Note that the first segment is over, as the norm does."""
    if cache.get("mean") is None and cache.get("var") is None:
        cache["mean"] = cache["var"] = 1


_CONVS = (("conv1", _CONV), ("conv1.conv", _SAFE), ("conv2", _CONV), ("conv2.conv", _SAFE))

register_family(
    Family(
        model="AutoencoderKLKVAEVideo",
        rules={
            _CONV: Rule(cached_conv, (("conv", _SAFE),), why_conv_left),
            _SAFE: Rule(safe_conv, (), why_safe_conv_left),
            "Conv3d": Rule(safe_conv, (), why_safe_conv_left),
            "KVAECachedResnetBlock3D": Rule(resnet, _CONVS, why_resnet_left),
            _SPATIAL: Rule(
                spatial_norm,
                (("norm_layer", _NORM), ("norm_layer.norm_layer", "GroupNorm")),
                why_spatial_norm_left,
            ),
        },
        needs_no_rule={"GroupNorm": "the block that it belongs to runs it"},
    )
)
