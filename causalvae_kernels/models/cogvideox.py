"""The rules for diffusers' `AutoencoderKLCogVideoX`."""

from __future__ import annotations

from .cogvideox_chunks import channels, chunk_sizes, count_chunks, decode_chunk, encode_chunk, spatial_ratio
from .cogvideox_coders import decoder, encoder
from .cogvideox_conv import causal_conv, why_conv_left
from .cogvideox_norm import spatial_norm
from .cogvideox_resample import downsample, up_block, upsample, why_downsample_left, why_upsample_left
from .session import ChunkCodec
from .swap import Family, Rule, register_family

_CONV = "CogVideoXCausalConv3d"
_SAFE = "CogVideoXSafeConv3d"

register_family(
    Family(
        model="AutoencoderKLCogVideoX",
        rules={
            "CogVideoXEncoder3D": Rule(encoder),
            "CogVideoXDecoder3D": Rule(decoder),
            _CONV: Rule(causal_conv, (("conv", _SAFE),), why_conv_left, exact=True),
            "CogVideoXSpatialNorm3D": Rule(
                spatial_norm,
                (
                    ("norm_layer", "GroupNorm"),
                    ("conv_y", _CONV),
                    ("conv_y.conv", _SAFE),
                    ("conv_b", _CONV),
                    ("conv_b.conv", _SAFE),
                ),
            ),
            "CogVideoXUpsample3D": Rule(upsample, (("conv", "Conv2d"),), why_upsample_left),
            "CogVideoXDownsample3D": Rule(downsample, (("conv", "Conv2d"),), why_downsample_left),
        },
        adapted={"CogVideoXUpBlock3D": Rule(up_block, exact=True, rests=False)},
        chunks=ChunkCodec(encode_chunk, decode_chunk, chunk_sizes, channels, spatial_ratio),
        count_chunks=count_chunks,
        has_schedules=True,
        needs_no_rule={
            "GroupNorm": "run as part of the encoder or decoder; with gradients by the framework",
            _SAFE: "a pointwise convolution: nothing to pad",
            "Linear": "a projection of the time embedding",
        },
    )
)
