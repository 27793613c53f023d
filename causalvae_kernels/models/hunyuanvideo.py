"""The rules for diffusers' `AutoencoderKLHunyuanVideo`."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import upsample_conv
from ..ops.upsample_conv.spec import SCALES
from .causal_attention import mid_block, why_mid_block_left
from .conv import convolve
from .hunyuan_conv import causal_conv, conv_of, why_conv_left
from .recorded import coder
from .swap import Family, Link, Rule, register_family


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


_CONV = "HunyuanVideoCausalConv3d"

register_family(
    Family(
        model="AutoencoderKLHunyuanVideo",
        rules={
            "HunyuanVideoEncoder3D": Rule(coder),
            "HunyuanVideoDecoder3D": Rule(coder),
            # Where the whole cannot be recorded, each block is.
            "HunyuanVideoDownBlock3D": Rule(coder),
            "HunyuanVideoUpBlock3D": Rule(coder),
            "HunyuanVideoResnetBlockCausal3D": Rule(coder),
            "HunyuanVideoMidBlock3D": Rule(
                mid_block, (("attentions.0", "Attention"),), why_mid_block_left, is_recorded=True
            ),
            _CONV: Rule(causal_conv, (("conv", "Conv3d"),), why_conv_left, exact=True),
            "HunyuanVideoUpsampleCausal3D": Rule(
                upsample, (("conv", _CONV), ("conv.conv", "Conv3d")), why_upsample_left
            ),
            "HunyuanVideoDownsampleCausal3D": Rule(
                downsample, (("conv", _CONV), ("conv.conv", "Conv3d")), why_downsample_left, exact=True
            ),
        },
        needs_no_rule={
            "GroupNorm": "run as part of the encoder or decoder; with gradients by the framework",
            "Conv3d": "a pointwise convolution of latents: nothing to pad",
            "Linear": "a projection of an attention block: a matrix product",
        },
    )
)
