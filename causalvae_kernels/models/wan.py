"""The rules for diffusers' `AutoencoderKLWan` (2.1 and 2.2) and the models that took over its code."""

from __future__ import annotations

from . import wan_shortcuts
from .clip_state import on_a_clone
from .stream import ChunkCodec
from .swap import Family, Rule, register_family
from .wan_blocks import mid_block, norm, resnet, up_block, why_norm_left, why_resnet_left
from .wan_chunks import channels, chunk_sizes, decode_chunk, encode_chunk
from .wan_coders import decoder, encoder, why_coder_left
from .wan_conv import causal_conv, why_conv_left
from .wan_resample import resample, why_resample_left


def _rules(prefix: str, shortcuts: str) -> dict[str, Rule]:
    """Return the rules by class.

    Args:
        prefix: Of the names of the classes.
        shortcuts: Of those of Wan 2.2's shortcuts.
    """
    conv, norm_class = f"{prefix}CausalConv3d", f"{prefix}RMS_norm"
    ends = (("conv_in", conv), ("conv_out", conv), ("norm_out", norm_class), ("nonlinearity", "SiLU"))
    return {
        f"{prefix}Encoder3d": Rule(encoder, ends, why_coder_left),
        f"{prefix}Decoder3d": Rule(decoder, ends, why_coder_left),
        conv: Rule(causal_conv, (), why_conv_left),
        norm_class: Rule(norm, (), why_norm_left),
        f"{prefix}ResidualBlock": Rule(
            resnet,
            (
                ("nonlinearity", "SiLU"),
                ("dropout", "Dropout"),
                ("norm1", norm_class),
                ("norm2", norm_class),
                ("conv1", conv),
                ("conv2", conv),
            ),
            why_resnet_left,
        ),
        f"{prefix}MidBlock": Rule(mid_block),
        f"{prefix}UpBlock": Rule(up_block),
        f"{prefix}ResidualUpBlock": Rule(wan_shortcuts.up_block, (("avg_shortcut", f"{shortcuts}DupUp3D"),)),
        f"{prefix}ResidualDownBlock": Rule(
            wan_shortcuts.down_block, (("avg_shortcut", f"{shortcuts}AvgDown3D"),)
        ),
        f"{prefix}Resample": Rule(
            resample,
            (("resample", "Sequential"), ("resample.1", "Conv2d"), ("time_conv", conv)),
            why_resample_left,
        ),
    }


_STREAMS = ChunkCodec(encode_chunk, decode_chunk, chunk_sizes, channels)

# Qwen-Image 2.1's takes single images.
for _model, _prefix, _shortcuts, _chunks in (
    ("AutoencoderKLWan", "Wan", "", _STREAMS),
    ("AutoencoderKLQwenImage", "QwenImage", "", _STREAMS),
    ("AutoencoderKLQwenImage21", "QwenImage21", "QwenImage21", None),
):
    register_family(
        Family(
            model=_model,
            rules=_rules(_prefix, _shortcuts),
            chunks=_chunks,
            clip=on_a_clone,
            needs_no_rule={"Conv2d": "a projection of an attention block, or of a resampler that is left"},
        )
    )
