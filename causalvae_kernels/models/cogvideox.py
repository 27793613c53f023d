"""The rules for diffusers' `AutoencoderKLCogVideoX`."""

from __future__ import annotations

from .cogvideox_blocks import resnet, spatial_norm, why_resnet_left
from .cogvideox_chunks import channels, chunk_sizes, count_chunks, decode_chunk, encode_chunk
from .cogvideox_coders import decoder, encoder
from .cogvideox_conv import causal_conv, why_conv_left
from .cogvideox_resample import downsample, up_block, upsample, why_downsample_left, why_upsample_left
from .stream import ChunkCodec
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
            "CogVideoXResnetBlock3D": Rule(
                resnet,
                (
                    ("nonlinearity", "SiLU"),
                    ("dropout", "Dropout"),
                    ("conv1", _CONV),
                    ("conv1.conv", _SAFE),
                    ("conv2", _CONV),
                    ("conv2.conv", _SAFE),
                ),
                why_resnet_left,
            ),
            "CogVideoXUpsample3D": Rule(upsample, (("conv", "Conv2d"),), why_upsample_left),
            "CogVideoXDownsample3D": Rule(downsample, (("conv", "Conv2d"),), why_downsample_left),
        },
        adapted={"CogVideoXUpBlock3D": Rule(up_block, exact=True, rests=False)},
        chunks=ChunkCodec(encode_chunk, decode_chunk, chunk_sizes, channels),
        count_chunks=count_chunks,
        needs_no_rule={
            "GroupNorm": "the block that it belongs to runs it",
            _SAFE: "a pointwise convolution: nothing to pad",
            "Linear": "a projection of the time embedding",
        },
    )
)
