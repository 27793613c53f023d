"""The rules for diffusers' `AutoencoderKLHunyuanVideo`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import upsample_conv
from ..ops.upsample_conv.spec import SCALES
from .coders import group_norm_format
from .conv import convolve, is_small
from .hooks import is_plain, type_name
from .hunyuan_blocks import residual_block, why_resnet_left
from .hunyuan_coders import Coder
from .hunyuan_conv import causal_conv, conv_of, in_format_of, why_conv_left
from .norms import NormOp, group_norm, takes
from .producers import Held
from .swap import Family, Link, Rule, register_family, run


def resnet(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoResnetBlockCausal3D`: norm and SiLU write into the convolution's padded buffer."""
    if is_small(link, hidden_states):
        return type(module).forward(module, hidden_states)
    return residual_block(module, link, Held(in_format_of(module.conv1, hidden_states)), norm_of)


def norm_of(norm: nn.Module, link: Link, x: Tensor) -> NormOp | None:
    """Return a `GroupNorm` as an op, or None: it must be called."""
    if type_name(norm) != "GroupNorm" or not is_plain(norm, run) or not takes((norm.weight, norm.bias), x):
        return None
    return group_norm(norm, link)


def upsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoUpsampleCausal3D`: nothing is upsampled before the convolution."""
    conv = module.conv.conv
    return upsample_conv(
        hidden_states,
        conv.weight,
        conv.bias,
        scale=scale_of(module),
        spatial_mode="replicate",
        backend=link.backend,
        precision=link.precision,
    )


def downsample(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoDownsampleCausal3D`: a convolution with a stride, in the layout of its input."""
    return convolve(conv_of(module.conv), link, hidden_states)[0]


def scale_of(module: nn.Module) -> tuple[int, ...]:
    """Return how often an upsampler repeats frames, rows and columns."""
    return tuple(int(factor) for factor in module.upsample_factor)


def why_upsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this upsampler, or None."""
    conv = module.conv.conv
    if tuple(module.upsample_factor) not in SCALES:
        return f"upsample_factor is {module.upsample_factor}, the rule is for {', '.join(map(str, SCALES))}"
    if (tuple(conv.kernel_size), tuple(conv.stride)) != ((3, 3, 3), (1, 1, 1)):
        return f"its convolution is {conv}, the rule is for a kernel of three without a stride"
    return why_conv_left(module.conv)


def why_downsample_left(module: nn.Module) -> str | None:
    """Return why the rule is not for this downsampler, or None."""
    return why_conv_left(module.conv)


def attend(attention: nn.Module, x: Tensor) -> Tensor:
    """Call an attention block on all pixels as a sequence; each sees its own frame and earlier ones."""
    batch, _, frames, height, width = x.shape
    frame = torch.arange(frames, device=x.device).repeat_interleave(height * width)
    mask = torch.zeros(len(frame), len(frame), dtype=x.dtype, device=x.device)
    mask.masked_fill_(frame > frame.unsqueeze(1), -torch.inf)
    sequence = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
    y = attention(sequence, attention_mask=mask.expand(batch, -1, -1))
    return y.unflatten(1, (frames, height, width)).permute(0, 4, 1, 2, 3)


def encoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoEncoder3D`."""
    return _CODER.encode(module, link, hidden_states)


def decoder(module: nn.Module, link: Link, hidden_states: Tensor) -> Tensor:
    """`HunyuanVideoDecoder3D`."""
    return _CODER.decode(module, link, hidden_states)


def _inner_format(module: nn.Module, link: Link, sample: Tensor) -> torch.memory_format:
    conv, groups = module.conv_in.conv, module.conv_norm_out.num_groups
    return group_norm_format(conv, math.gcd(conv.out_channels, groups), link, sample)


_CODER = Coder(
    norm_out="conv_norm_out",
    norm_of=norm_of,
    blocks=("HunyuanVideoDownBlock3D", "HunyuanVideoMidBlock3D", "HunyuanVideoUpBlock3D"),
    attend=attend,
    growth=lambda sampler: math.prod(scale_of(sampler)),
    inner_format=_inner_format,
)

_CONV = "HunyuanVideoCausalConv3d"

register_family(
    Family(
        model="AutoencoderKLHunyuanVideo",
        rules={
            "HunyuanVideoEncoder3D": Rule(encoder),
            "HunyuanVideoDecoder3D": Rule(decoder),
            _CONV: Rule(causal_conv, (("conv", "Conv3d"),), why_conv_left, exact=True),
            "HunyuanVideoResnetBlockCausal3D": Rule(
                resnet,
                (
                    ("nonlinearity", "SiLU"),
                    ("dropout", "Dropout"),
                    ("conv1", _CONV),
                    ("conv1.conv", "Conv3d"),
                    ("conv2", _CONV),
                    ("conv2.conv", "Conv3d"),
                ),
                why_resnet_left,
            ),
            "HunyuanVideoUpsampleCausal3D": Rule(
                upsample, (("conv", _CONV), ("conv.conv", "Conv3d")), why_upsample_left
            ),
            "HunyuanVideoDownsampleCausal3D": Rule(
                downsample, (("conv", _CONV), ("conv.conv", "Conv3d")), why_downsample_left, exact=True
            ),
        },
        needs_no_rule={
            "GroupNorm": "the block that it belongs to runs it",
            "Conv3d": "a pointwise convolution of latents: nothing to pad",
            "Linear": "a projection in an attention block, which is left alone",
        },
    )
)
