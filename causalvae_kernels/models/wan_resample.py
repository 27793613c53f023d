"""Wan's changes of resolution: a convolution over space, and one over time that has a place in the cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.layout import memory_format_of
from ..ops import downsample_conv, upsample_conv
from .conv import why_conv2d_left
from .hooks import has_foreign_method, type_name, why_hooked
from .norms import backend_options
from .swap import Link, run
from .wan_conv import FeatCache, FeatIdx, last_frames, why_conv_left

FIRST = "Rep"
"""What diffusers leaves in the place of a doubling convolution at the first chunk, which is not doubled."""


def resample(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanResample`: pixels are neither repeated nor padded before they are convolved."""
    index = [0] if feat_idx is None else feat_idx
    conv, mode = module.resample[1], module.mode
    arguments, options = (conv.weight.unsqueeze(2), conv.bias), backend_options(link)
    if mode.startswith("up"):
        if mode == "upsample3d" and feat_cache is not None:
            x = _doubled(module.time_conv, x, feat_cache, index)
        if x.dtype == torch.float64:
            x = x.float().double()  # the model repeats pixels in float32
        return upsample_conv(x, *arguments, **options)
    y = downsample_conv(x, *arguments, **options)
    return (
        _halved(module.time_conv, y, feat_cache, index)
        if mode == "downsample3d" and feat_cache is not None
        else y
    )


def why_resample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this `WanResample`, or None."""
    first, conv = module.resample[0], module.resample[1]
    kind = type_name(first)
    if module.mode.startswith("up"):
        settings = (getattr(first, name, None) for name in ("size", "scale_factor", "mode"))
        fits_rule = kind in _UPSAMPLES and tuple(settings) == (None, (2.0, 2.0), "nearest-exact")
        reason = why_conv2d_left(conv, stride=1, padding=1)
    else:
        fits_rule = kind == "ZeroPad2d" and tuple(first.padding) == (0, 1, 0, 1)
        reason = why_conv2d_left(conv, stride=2, padding=0)
    if not fits_rule:
        return f"its resample.0 is {first}, which is not what the op does"
    if why_hooked(first) is not None or has_foreign_method(first, run):
        return f"its resample.0 must be called: {why_hooked(first) or 'someone else replaced its forward'}"
    if reason is None and hasattr(module, "time_conv"):
        reason = why_conv_left(module.time_conv)
    return reason


_UPSAMPLES = ("WanUpsample", "QwenImageUpsample", "QwenImage21Upsample")


def _doubled(time_conv: nn.Module, x: Tensor, cache: list[object], index: list[int]) -> Tensor:
    """Make two frames of each, the first one of the video excepted."""
    found = cache[index[0]]
    if found is None:
        cache[index[0]] = FIRST
    else:
        past = None if isinstance(found, str) else found
        cache[index[0]] = last_frames(x, torch.zeros_like(x) if past is None else past)
        x = interleaved(time_conv(x, past))
    index[0] += 1
    return x


def interleaved(y: Tensor) -> Tensor:
    """Return (B, 2C, T, H, W) as (B, C, 2T, H, W): frames of the first and the second half in turns."""
    halves = y.unflatten(1, (2, y.shape[1] // 2))
    if memory_format_of(y) == torch.channels_last_3d:
        return halves.permute(0, 3, 1, 4, 5, 2).flatten(1, 2).permute(0, 4, 1, 2, 3)
    return halves.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def _halved(time_conv: nn.Module, y: Tensor, cache: list[object], index: list[int]) -> Tensor:
    """Make one frame of two and the one before, the first frame of the video excepted."""
    found = cache[index[0]]
    if found is None:
        cache[index[0]] = y.clone()
    else:
        cache[index[0]] = y[:, :, -1:].clone()
        y = time_conv(torch.cat([found[:, :, -1:].to(y.device), y], dim=2))
    index[0] += 1
    return y
