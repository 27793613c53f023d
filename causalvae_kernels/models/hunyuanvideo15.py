"""The rules for diffusers' `AutoencoderKLHunyuanVideo15` and `AutoencoderKLHunyuanImageRefiner`.

The two are one code under two names, but for time: where HunyuanVideo 1.5 halves or doubles frames after the
first, the refiner leaves them alone, with the same numbers of channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .conv import convolve, is_small, may_write
from .hunyuan_blocks import residual_block, why_resnet_left
from .hunyuan_coders import Coder
from .hunyuan_conv import causal_conv, conv_of, in_format_of, why_conv_left
from .hunyuan_shuffle import shuffled_down, shuffled_up
from .norms import NormOp, rms_norm, takes
from .producers import Held
from .swap import Family, Link, Rule, register_family, rule_at_work


def norm(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15RMS_norm` without an activation behind it."""
    if is_small(link, x) or x.dim() != 5 or not takes((module.gamma, _bias(module)), x):
        return type(module).forward(module, x)
    return rms_norm(module.gamma, _bias(module), link)(x, activation=None)


def norm_of(module: nn.Module, link: Link, x: Tensor) -> NormOp | None:
    """Return an RMS norm as an op, or None: it must be called."""
    if rule_at_work(module, link) is None or not takes((module.gamma, _bias(module)), x):
        return None
    return rms_norm(module.gamma, _bias(module), link)


def why_norm_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this norm, or None."""
    gamma = module.gamma
    if not module.channel_first or gamma.dim() != 4:
        return f"its gamma has shape {tuple(gamma.shape)}, the rule is for (C, 1, 1, 1) in front of a video"
    if module.scale != gamma.shape[0] ** 0.5:
        return f"its scale is {module.scale}, the rule is for the root of {gamma.shape[0]} channels"
    return None


def resnet(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideo15ResnetBlock`: norm and SiLU write into the convolution's padded buffer."""
    if is_small(link, hidden_states):
        return type(module).forward(module, hidden_states)
    return residual_block(module, link, Held(in_format_of(module.conv1, hidden_states)), norm_of)


def upsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15Upsample`: shuffle and shortcut in one pass over the output."""
    first = int(module.add_temporal_upsample)
    return _upsample(module, link, x, first, 1 + first)


def refiner_upsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanImageRefinerUpsampleDCAE`: as `upsample`, time left alone."""
    return _upsample(module, link, x, x.shape[2] if module.add_temporal_upsample else 0, 1)


def downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanVideo15Downsample`: the averaged shortcut is written once, and the shuffle added to it."""
    first = int(module.add_temporal_downsample)
    return _downsample(module, link, x, first, 1 + first)


def refiner_downsample(module: nn.Module, link: Link, x: Tensor) -> Tensor:
    """`HunyuanImageRefinerDownsampleDCAE`: as `downsample`, time left alone."""
    return _downsample(module, link, x, x.shape[2] if module.add_temporal_downsample else 0, 1)


def _upsample(module: nn.Module, link: Link, x: Tensor, first: int, frames: int) -> Tensor:
    if not _may_shuffle(module, x):
        return type(module).forward(module, x)
    h, _ = convolve(conv_of(module.conv), link, x)
    channels = h.shape[1] // (8 if module.add_temporal_upsample else 4)
    return shuffled_up(h, x, channels, first, frames)


def _downsample(module: nn.Module, link: Link, x: Tensor, first: int, frames: int) -> Tensor:
    if not _may_shuffle(module, x):
        return type(module).forward(module, x)
    h, _ = convolve(conv_of(module.conv), link, x)
    channels = h.shape[1] * (8 if module.add_temporal_downsample else 4)
    return shuffled_down(h, x, channels, first, frames)


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


def encoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideo15Encoder3D`."""
    return _CODERS[link.family].encode(module, link, hidden_states)


def decoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideo15Decoder3D`."""
    return _CODERS[link.family].decode(module, link, hidden_states)


def _coder(prefix: str, pixels: Callable[[nn.Module], int]) -> Coder:
    return Coder(
        norm_out="norm_out",
        norm_of=norm_of,
        blocks=(f"{prefix}DownBlock3D", f"{prefix}MidBlock", f"{prefix}UpBlock3D"),
        attend=lambda attention, x: attention(x),
        growth=pixels,
        inner_format=lambda module, link, sample: torch.channels_last_3d,
        shortcuts=True,
    )


_CODERS = {
    "AutoencoderKLHunyuanVideo15": _coder("HunyuanVideo15", lambda s: 8 if s.add_temporal_upsample else 4),
    "AutoencoderKLHunyuanImageRefiner": _coder("HunyuanImageRefiner", lambda s: 4),
}


def _register(prefix: str, up: tuple[str, object], down: tuple[str, object]) -> None:
    conv, around = f"{prefix}CausalConv3d", (("conv", f"{prefix}CausalConv3d"), ("conv.conv", "Conv3d"))
    block = (("nonlinearity", "SiLU"), *(p for name in ("conv1", "conv2") for p in _within(name, conv)))
    register_family(
        Family(
            model=f"AutoencoderKL{prefix}",
            rules={
                f"{prefix}Encoder3D": Rule(encoder),
                f"{prefix}Decoder3D": Rule(decoder),
                conv: Rule(causal_conv, (("conv", "Conv3d"),), why_conv_left, exact=True),
                f"{prefix}RMS_norm": Rule(norm, why_left=why_norm_left),
                f"{prefix}ResnetBlock": Rule(resnet, block, why_resnet_left),
                f"{prefix}{up[0]}": Rule(up[1], around, why_upsample_left, exact=True),
                f"{prefix}{down[0]}": Rule(down[1], around, why_downsample_left),
            },
            needs_no_rule={"Conv3d": "a pointwise convolution: nothing to pad"},
        )
    )


def _within(name: str, conv: str) -> tuple[tuple[str, str], ...]:
    return (name, conv), (f"{name}.conv", "Conv3d")


_register("HunyuanVideo15", ("Upsample", upsample), ("Downsample", downsample))
_register("HunyuanImageRefiner", ("UpsampleDCAE", refiner_upsample), ("DownsampleDCAE", refiner_downsample))
