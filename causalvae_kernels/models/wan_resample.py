"""Wan's changes of resolution: a convolution over space, and one over time that has a place in the cache."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..core import memory
from ..core.layout import memory_format_of
from ..ops import causal_conv3d, downsample_conv, upsample_conv
from .conv import convolve, may_write, needs_no_room, why_conv2d_left
from .hooks import has_foreign_method, type_name, why_hooked
from .norms import backend_options
from .producers import Held
from .swap import Link, run
from .wan_blocks import STEPS, FeatCache, FeatIdx, Way, alone
from .wan_conv import conv_of, fits, last_frames, state_of, why_conv_left

_FIRST = "Rep"
"""What diffusers leaves in the place of a doubling convolution at the first chunk, which is not doubled."""


def resample(
    module: nn.Module, link: Link, x: Tensor, feat_cache: FeatCache = None, feat_idx: FeatIdx = None
) -> Tensor:
    """`WanResample`: pixels are neither repeated nor padded before they are convolved."""
    return alone(resampled, module, link, x, feat_cache, feat_idx)


def resampled(module: nn.Module, way: Way, held: Held) -> None:
    """Run a change of resolution; what comes out has another size, so that the pool has no use for it."""
    if way.pool is not None:
        way.pool.clear()
    conv, mode = module.resample[1], module.mode
    arguments, options = (conv.weight.unsqueeze(2), conv.bias), backend_options(way.link)
    if mode.startswith("up"):
        if mode == "upsample3d":
            _double_frames(module, way, held)
        x = held.take()
        if x.dtype == torch.float64:
            x = x.float().double()  # the model repeats pixels in float32
        held.tensor = upsample_conv(x, *arguments, **options)
    else:
        held.tensor = downsample_conv(held.take(), *arguments, **options)
        if mode == "downsample3d":
            _halve_frames(module, way, held)
    held.owned = True


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


def _double_frames(module: nn.Module, way: Way, held: Held) -> None:
    """Make two frames of each, the first one of the video excepted: two convolutions, interleaved."""
    features, x = way.features, held.tensor
    if not features.kept:
        return
    found = features.found
    if found is None:
        features.keep(_FIRST)
        return
    past = None if isinstance(found, str) else found
    held.tensor = _interleaved(module.time_conv, way, x, past)
    features.keep(last_frames(x, torch.zeros_like(x) if past is None else past, owned=held.owned))


def _interleaved(module: nn.Module, way: Way, x: Tensor, past: Tensor | None) -> Tensor:
    conv = conv_of(module)
    if not fits(module, conv, x, past):
        return interleaved(type(module).forward(module, x, past))
    past = state_of(conv, x, past)
    biases = (None, None) if conv.bias is None else conv.bias.chunk(2)
    halves = [replace(conv, weight=w, bias=b) for w, b in zip(conv.weight.chunk(2), biases, strict=True)]
    on_cpu = x.device.type == "cpu" and may_write(x, past, conv.weight, conv.bias)
    if not (on_cpu and needs_no_room(halves[0], way.link, x, first=past is None)):
        return interleaved(convolve(conv, way.link, x, past)[0])
    # Each half of the channels goes straight into its frames.
    batch, _, frames, height, width = x.shape
    out = memory.empty(
        (batch, halves[0].weight.shape[0], 2 * frames, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x, conv.weight),
    )
    for turn, half in enumerate(halves):
        options = {**half.options(way.link), "initial_state": past}
        causal_conv3d(x, half.weight, half.bias, out=out[:, :, turn::2], **options)
    return out


def interleaved(y: Tensor) -> Tensor:
    """Return (B, 2C, T, H, W) as (B, C, 2T, H, W): frames of the first and the second half in turns."""
    halves = y.unflatten(1, (2, y.shape[1] // 2))
    if memory_format_of(y) == torch.channels_last_3d:
        return halves.permute(0, 3, 1, 4, 5, 2).flatten(1, 2).permute(0, 4, 1, 2, 3)
    return halves.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)


def _halve_frames(module: nn.Module, way: Way, held: Held) -> None:
    """Make one frame of two and the one before, the first frame of the video excepted."""
    features, y = way.features, held.tensor
    if not features.kept:
        return
    found = features.found
    if found is None:
        features.keep(y.clone())
        return
    held.tensor = _halved(module.time_conv, way, y, found[:, :, -1:])
    features.keep(y[:, :, -1:].clone())


def _halved(module: nn.Module, way: Way, y: Tensor, past: Tensor) -> Tensor:
    conv = conv_of(module)
    fits_op = conv.temporal_mode == "valid" and conv.weight.shape[2] == 3 and y.shape[2] > 1
    if not fits_op or past.dtype != y.dtype:
        return type(module).forward(module, torch.cat([past, y], dim=2))
    # The first window is the frame before and two of the chunk; as a state, the op wants two frames.
    state, conv = torch.cat([past.to(y.device), y[:, :, :1]], dim=2), replace(conv, temporal_mode="zeros")
    return convolve(conv, way.link, y[:, :, 1:], state)[0]


STEPS[resample] = resampled
