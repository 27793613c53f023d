"""The rules for diffusers' `AutoencoderKLWan` (2.1 and 2.2) and the models that took over its code."""

from __future__ import annotations

from .clip_state import on_a_clone
from .session import ChunkCodec
from .swap import Family, Rule, register_family
from .wan_chunks import channels, chunk_sizes, decode_chunk, encode_chunk, merged, per_pass, spatial_ratio
from .wan_coders import decoder, encoder, why_coder_left
from .wan_conv import causal_conv, why_conv_left
from .wan_norm import norm, why_norm_left
from .wan_resample import resample, why_resample_left


def _rules(prefix: str) -> dict[str, Rule]:
    """Return the rules by class, their names beginning so."""
    conv, norm_class = f"{prefix}CausalConv3d", f"{prefix}RMS_norm"
    ends = (("conv_in", conv), ("conv_out", conv), ("norm_out", norm_class), ("nonlinearity", "SiLU"))
    return {
        f"{prefix}Encoder3d": Rule(encoder, ends, why_coder_left),
        f"{prefix}Decoder3d": Rule(decoder, ends, why_coder_left),
        conv: Rule(causal_conv, (), why_conv_left),
        norm_class: Rule(norm, (), why_norm_left),
        f"{prefix}Resample": Rule(
            resample,
            (("resample", "Sequential"), ("resample.1", "Conv2d"), ("time_conv", conv)),
            why_resample_left,
        ),
    }


_STREAMS = ChunkCodec(encode_chunk, decode_chunk, chunk_sizes, channels, spatial_ratio, per_pass)

# Qwen-Image 2.1's takes single images.
for _model, _prefix, _chunks in (
    ("AutoencoderKLWan", "Wan", _STREAMS),
    ("AutoencoderKLQwenImage", "QwenImage", _STREAMS),
    ("AutoencoderKLQwenImage21", "QwenImage21", None),
):
    register_family(
        Family(
            model=_model,
            rules=_rules(_prefix),
            chunks=_chunks,
            clip=on_a_clone,
            has_schedules=True,
            merged=None if _chunks is None else merged,
            needs_no_rule={"Conv2d": "a projection of an attention block, or of a resampler that is left"},
        )
    )
