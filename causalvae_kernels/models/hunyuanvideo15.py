"""The rules for diffusers' `AutoencoderKLHunyuanVideo15` and `AutoencoderKLHunyuanImageRefiner`.

The two are one code under two names, but for time: where HunyuanVideo 1.5 halves or doubles frames after the
first, the refiner leaves them alone, with the same numbers of channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..coder import record as recording
from .causal_attention import attention_block
from .conv import convolve, is_small, may_write
from .hunyuan_conv import causal_conv, conv_of, why_conv_left
from .hunyuan_shuffle import shuffled_down, shuffled_up
from .norms import rms_norm, takes
from .recorded import coder, record_rms_norm
from .swap import Family, Link, Rule, register_family


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15RMS_norm`: `rms_norm`, one pass over the channels of each pixel."""
    if x.dim() != 5 or not takes((module.gamma, _bias(module)), x):
        return type(module).forward(module, x)
    if recording.current() is not None:
        return record_rms_norm(module, x, module.gamma, _bias(module))
    if is_small(link, x):
        return type(module).forward(module, x)
    return rms_norm(module.gamma, _bias(module), link)(x, activation=None)


def why_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this norm, or None."""
    gamma = module.gamma
    if not module.channel_first or gamma.dim() != 4:
        return f"its gamma has shape {tuple(gamma.shape)}, the rule is for (C, 1, 1, 1) in front of a video"
    if module.scale != gamma.shape[0] ** 0.5:
        return f"its scale is {module.scale}, the rule is for the root of {gamma.shape[0]} channels"
    return None


def upsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15Upsample`: shuffle and shortcut in one pass over the output."""
    first = int(module.add_temporal_upsample)
    return _upsample(module, link, x, first, 1 + first)


def refiner_upsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanImageRefinerUpsampleDCAE`: shuffle and shortcut in one pass over the output, in space only."""
    return _upsample(module, link, x, x.shape[2] if module.add_temporal_upsample else 0, 1)


def downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15Downsample`: the averaged shortcut is written once, and the shuffle added to it."""
    first = int(module.add_temporal_downsample)
    return _downsample(module, link, x, first, 1 + first)


def refiner_downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanImageRefinerDownsampleDCAE`: the averaged shortcut is written once, in space only."""
    return _downsample(module, link, x, x.shape[2] if module.add_temporal_downsample else 0, 1)


def _upsample(module: nn.Module, link: Link, x: Tensor, first: int, frames: int) -> Tensor:
    if not _may_shuffle(module, x):
        return type(module).forward(module, x)
    factor = 8 if module.add_temporal_upsample else 4
    return _shuffled(shuffled_up, module, link, x, module.conv.conv.out_channels // factor, first, frames)


def _downsample(module: nn.Module, link: Link, x: Tensor, first: int, frames: int) -> Tensor:
    if not _may_shuffle(module, x):
        return type(module).forward(module, x)
    factor = 8 if module.add_temporal_downsample else 4
    return _shuffled(shuffled_down, module, link, x, module.conv.conv.out_channels * factor, first, frames)


def _shuffled(shuffle: Callable[..., Tensor], module: nn.Module, link: Link, x: Tensor, *how: int) -> Tensor:
    """Convolve, and shuffle the result and the shortcut together."""
    recorder = recording.current()
    if recorder is not None:
        return recorder.call(shuffle, module.conv(x), x, *how)
    return shuffle(convolve(conv_of(module.conv), link, x)[0], x, *how)


def _may_shuffle(module: nn.Module, x: Tensor) -> bool:
    """Whether results may be written in place, all in one dtype; else the convolution's rule runs."""
    conv = module.conv.conv
    return (
        x.numel() > 0
        and may_write(x, conv.weight, conv.bias)
        and not torch.is_autocast_enabled(x.device.type)
    )


def why_upsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this upsampler, or None."""
    conv, factor = module.conv.conv, 8 if module.add_temporal_upsample else 4
    channels, rest = divmod(conv.out_channels, factor)
    fits = not rest and conv.in_channels % factor == 0 and channels * factor % conv.in_channels == 0
    if not fits or module.repeats * conv.in_channels != channels * factor:
        return (
            f"its shortcut repeats {conv.in_channels} channels {module.repeats} times, the rule is for whole "
            f"repetitions up to {conv.out_channels}"
        )
    return _why_resample_left(module)


def why_downsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this downsampler, or None."""
    conv, factor = module.conv.conv, 8 if module.add_temporal_downsample else 4
    channels, group = conv.out_channels * factor, module.group_size
    even = group % 2 == 0 or not module.add_temporal_downsample
    if not even or group < 1 or conv.in_channels % group or group * channels != factor * conv.in_channels:
        return (
            f"its shortcut averages {group} of {factor * conv.in_channels} channels, the rule is for whole "
            f"groups of all, down to {channels}"
        )
    return _why_resample_left(module)


def _why_resample_left(module: nn.Module) -> str | None:
    conv = module.conv.conv
    if tuple(conv.stride) != (1, 1, 1):
        return f"its convolution has stride {conv.stride}, the rule is for one that keeps the resolution"
    return why_conv_left(module.conv)


def _bias(module: nn.Module) -> Tensor | None:
    """Return the norm's bias; without one the model adds zero."""
    return module.bias if isinstance(module.bias, Tensor) else None


def _register(prefix: str, up: tuple[str, object], down: tuple[str, object], **rules: Rule) -> None:
    conv, around = f"{prefix}CausalConv3d", (("conv", f"{prefix}CausalConv3d"), ("conv.conv", "Conv3d"))
    register_family(
        Family(
            model=f"AutoencoderKL{prefix}",
            rules={
                f"{prefix}Encoder3D": Rule(coder),
                f"{prefix}Decoder3D": Rule(coder),
                # Where the whole cannot be recorded, each block is.
                f"{prefix}DownBlock3D": Rule(coder),
                f"{prefix}UpBlock3D": Rule(coder),
                f"{prefix}ResnetBlock": Rule(coder),
                conv: Rule(causal_conv, (("conv", "Conv3d"),), why_conv_left, exact=True),
                f"{prefix}RMS_norm": Rule(norm, why_left=why_norm_left, is_recorded=True),
                f"{prefix}{up[0]}": Rule(up[1], around, why_upsample_left, exact=True, is_recorded=True),
                f"{prefix}{down[0]}": Rule(down[1], around, why_downsample_left, is_recorded=True),
                **rules,
            },
            needs_no_rule={"Conv3d": "a pointwise convolution: nothing to pad"},
        )
    )


_register(
    "HunyuanVideo15",
    ("Upsample", upsample),
    ("Downsample", downsample),
    HunyuanVideo15AttnBlock=Rule(attention_block, is_recorded=True),
)
_register("HunyuanImageRefiner", ("UpsampleDCAE", refiner_upsample), ("DownsampleDCAE", refiner_downsample))
