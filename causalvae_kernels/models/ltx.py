"""The rules for diffusers' `AutoencoderKLLTXVideo` and `AutoencoderKLLTX2Video`."""

from __future__ import annotations

from .ltx_blocks import (
    causal_conv,
    causal_conv2,
    downsample,
    downsample2,
    resnet,
    resnet2,
    upsample,
    upsample2,
    why_conv_left,
    why_resnet_left,
)
from .ltx_coders import decoder, decoder2, encoder, encoder2, why_coder_left
from .swap import Family, Rule, register_family


def _why_sampler_left(module: object) -> str | None:
    """Return why the rule is not for this up- or downsampler, or None."""
    return why_conv_left(module.conv)


def _family(model: str, prefix: str, norm: str, rules: tuple[object, ...]) -> Family:
    """Return the rules under the names that the classes of one generation have."""
    conv_rule, resnet_rule, up_rule, down_rule, encoder_rule, decoder_rule = rules
    conv = f"{prefix}CausalConv3d"
    convolution = (("conv", conv), ("conv.conv", "Conv3d"))
    last = (("norm_out", norm), ("conv_act", "SiLU"), ("conv_out", conv), ("conv_out.conv", "Conv3d"))
    block = (
        ("nonlinearity", "SiLU"),
        ("norm1", norm),
        ("norm2", norm),
        ("conv1", conv),
        ("conv1.conv", "Conv3d"),
        ("conv2", conv),
        ("conv2.conv", "Conv3d"),
    )
    return Family(
        model=model,
        rules={
            f"{prefix}Encoder3d": Rule(encoder_rule, last, why_coder_left),
            f"{prefix}Decoder3d": Rule(decoder_rule, last, why_coder_left),
            conv: Rule(conv_rule, (("conv", "Conv3d"),), why_conv_left, exact=True),
            f"{prefix}ResnetBlock3d": Rule(resnet_rule, block, why_resnet_left),
            f"{prefix}Upsampler3d": Rule(up_rule, convolution, _why_sampler_left),
            f"{prefix}Downsampler3d": Rule(down_rule, convolution, _why_sampler_left),
        },
        needs_no_rule={
            "Conv3d": "pads no frames: it is pointwise, or the module that calls it pads",
            "LayerNorm": "normalises what a pointwise convolution reads",
            "Linear": "a projection of the time embedding",
        },
    )


register_family(
    _family(
        "AutoencoderKLLTXVideo",
        "LTXVideo",
        "RMSNorm",
        (causal_conv, resnet, upsample, downsample, encoder, decoder),
    )
)
register_family(
    _family(
        "AutoencoderKLLTX2Video",
        "LTX2Video",
        "PerChannelRMSNorm",
        (causal_conv2, resnet2, upsample2, downsample2, encoder2, decoder2),
    )
)
