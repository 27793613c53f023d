"""Which settings of diffusers' video VAEs decide what they do to a number of frames.

One function per class reads a model's attributes and configuration and builds its codec. What a class assigns
to an attribute without making it a setting stands here as the second argument of `read`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from . import frame_codecs as codecs
from . import segment_codecs
from .frame_codecs import Codec, Step, halvings

Read = Callable[..., Any]


def cogvideox(read: Read) -> Codec:
    """Chunks of frames and of latents."""
    # The last block resamples nothing.
    depth = min(halvings(read("temporal_compression_ratio")), len(read("block_out_channels")) - 1)
    return codecs.CogVideoXCodec(
        ratio=2**depth,
        frames_per_chunk=int(read("num_sample_frames_batch_size", 8)),
        latents_per_chunk=int(read("num_latent_frames_batch_size", 2)),
    )


def wan(read: Read) -> Codec:
    """Groups of four frames, which is no setting."""
    depth = sum(map(bool, read("temperal_downsample")[: len(read("dim_mult")) - 1]))
    return codecs.WanCodec(2**depth, depth)


def hunyuan_video(read: Read) -> Codec:
    """Strided convolutions; windows in time by default."""
    ratio = read("temporal_compression_ratio")
    depth = min(halvings(ratio), len(read("block_out_channels")) - 1)
    return codecs.TiledCodec(
        ratio=2**depth,
        inner=codecs.CausalCodec(2**depth, (Step(2),) * depth, (2,) * depth),
        encodes=bool(read("use_framewise_encoding", True)),
        decodes=bool(read("use_framewise_decoding", True)),
        assumed_ratio=ratio,
        tile=read("tile_sample_min_num_frames", 16),
        stride=read("tile_sample_stride_num_frames", 12),
    )


def hunyuan_video15(read: Read) -> Codec:
    """Pairs of frames folded into channels."""
    time, space = read("temporal_compression_ratio"), read("spatial_compression_ratio")
    blocks = range(len(read("block_out_channels")))
    down = sum(math.log2(space // time) <= block < math.log2(space) for block in blocks)
    up = sum(block < math.log2(time) for block in blocks)
    return codecs.CausalCodec(2**down, (Step(2, "refuse"),) * down, (2,) * up)


def hunyuan_image_refiner(read: Read) -> Codec:
    """Nothing: its temporal_compression_ratio moves no frame."""
    return codecs.CausalCodec(1, (), ())


def ltx(read: Read) -> Codec:
    """Strided convolutions (0.9.0) or frames folded into channels (0.9.5)."""
    types = read("down_block_types")
    blocks = len(read("block_out_channels")) - (types[-1] == "LTXVideo095DownBlock3D")
    kinds = read("downsample_type")
    kinds = ["conv" if types[i] == "LTXVideoDownBlock3D" else kinds[i] for i in range(blocks)]
    scaling = read("spatio_temporal_scaling")
    scaling_up = _last(read("decoder_spatio_temporal_scaling"), len(read("decoder_block_out_channels")))
    return _ltx(read, kinds, scaling, sum(scaling_up))


def ltx2(read: Read) -> Codec:
    """Frames folded into channels."""
    scaling, scaling_up = read("spatio_temporal_scaling"), read("decoder_spatio_temporal_scaling")
    if isinstance(scaling, bool):
        scaling = (scaling,) * (len(read("layers_per_block")) - 1)
    if isinstance(scaling_up, bool):
        scaling_up = (scaling_up,) * (len(read("decoder_layers_per_block")) - 1)
    blocks = len(read("block_out_channels"))
    scaling_up = _last(scaling_up, len(read("decoder_block_out_channels")))[::-1]
    up = sum(s and kind != "spatial" for s, kind in zip(scaling_up, read("upsample_type"), strict=False))
    return _ltx(read, list(read("downsample_type")[:blocks]), scaling, up)


def _ltx(read: Read, kinds: list[str], scaling: Any, up: int) -> Codec:
    rest = {"conv": "drop", "temporal": "refuse", "spatiotemporal": "refuse"}
    down = tuple(
        Step(2, rest[kind]) for kind, scaled in zip(kinds, scaling, strict=False) if scaled and kind in rest
    )
    patch = read("patch_size_t")
    ratio = patch * 2 ** len(down)
    # Both directions look at the switch of the decoder.
    framewise = bool(read("use_framewise_decoding", False))
    return codecs.TiledCodec(
        ratio=ratio,
        inner=codecs.CausalCodec(ratio, down, (2,) * up, patch),
        encodes=framewise,
        decodes=framewise,
        # The class counts blocks that compress space only, unless it is told.
        assumed_ratio=read("temporal_compression_ratio") or patch * 2 ** sum(map(bool, scaling)),
        tile=read("tile_sample_min_num_frames", 16),
        stride=read("tile_sample_stride_num_frames", 8),
    )


def _last(flags: Any, count: int) -> tuple[bool, ...]:
    return tuple(map(bool, flags[max(len(flags) - count, 0) :]))


def cosmos(read: Read) -> Codec:
    """Patches in time, by wavelets (which fill up) or folding (which does not); strided convolutions."""
    patch = read("patch_size")
    extra = max(halvings(read("temporal_compression_ratio")) - halvings(patch), 0)
    down = max(min(extra, len(read("encoder_block_out_channels")) - 2), 0)
    up = max(min(extra, len(read("decode_block_out_channels")) - 3), 0)
    first = Step(patch, "fill" if read("patch_type") == "haar" else "refuse")
    return codecs.CausalCodec(patch * 2**down, (first, *(Step(2),) * down), (2,) * up + (patch,))


def mochi(read: Read) -> Codec:
    """Strided convolutions; every latent becomes `ratio` frames, the first of which are dropped."""
    down = tuple(read("temporal_expansions")[: len(read("encoder_block_out_channels")) - 1])
    return codecs.MochiCodec(
        ratio=math.prod(down),
        down=tuple(Step(factor) for factor in down),
        up=down,
        drops_lead=bool(read("drop_last_temporal_frames", True)),
        framewise_encoding=bool(read("use_framewise_encoding", False)),
    )


def magvit(read: Read) -> Codec:
    """Groups of frames; the last block resamples nothing."""
    down = sum(kind == "SpatialTemporalDownBlock3D" for kind in read("down_block_types")[:-1])
    up = sum(kind == "SpatialTemporalUpBlock3D" for kind in read("up_block_types")[:-1])
    return codecs.MagvitCodec(2**down, down, up, read("num_sample_frames_batch_size", 4))


def allegro(read: Read) -> Codec:
    """Windows of `kernel[0]` frames, `stride[0]` apart; only with tiling."""
    window, stride = read("kernel", (24,))[0], read("stride", (16,))[0]
    # A configuration does not say whether tiling is on; the model runs in no other way.
    return segment_codecs.AllegroCodec(
        int(read("temporal_compression_ratio")), window, stride, bool(read("use_tiling", True))
    )


def kvae(read: Read) -> Codec:
    """Segments of frames."""
    compression = read("temporal_compress_times")
    depth = min(halvings(compression), len(read("ch_mult")) - 1)
    return segment_codecs.KVAECodec(2**depth, depth, compression)


def kandinsky6(read: Read) -> Codec:
    """Segments of frames."""
    ratio, start = read("temporal_compression_ratio"), read("temporal_compression_start_level")
    depth = max(min(halvings(ratio), len(read("encoder_block_out_channels")) - 1 - start), 0)
    return segment_codecs.Kandinsky6Codec(2**depth, depth, segment_codecs.Kandinsky6Codec.segment // ratio)


def minimax_h3(read: Read) -> Codec:
    """Clips of frames; the geometry follows from their length and the number of dropped latents."""
    factors = tuple(read("temporal_downsample_factors"))
    ratio, clip, dropped = math.prod(factors), read("clip_length"), read("token_drop")
    latents = read("tokens_chunk_size", -(-clip // ratio))
    return segment_codecs.MiniMaxH3Codec(
        ratio=ratio,
        factors=factors,
        clip_frames=clip,
        dropped=dropped,
        clip_latents=latents,
        overlap=read("token_overlap", -dropped % latents),
        pre_padding=read("frame_pre_padding", -clip % ratio),
    )


def vidtok(read: Read) -> Codec:
    """Halvings; a causal model drops the frames that its `forward` puts in front."""
    down, up = read("tempo_ds"), read("tempo_us")
    down, up = (2 if levels is None else len(levels) for levels in (down, up))
    batch = read("num_sample_frames_batch_size", 16) >> down
    return codecs.VidTokCodec(
        ratio=2**down,
        halvings=down,
        doublings=up,
        causal=bool(read("is_causal")),
        latents_per_batch=read("num_latent_frames_batch_size", batch),
        tiled=bool(read("use_tiling", False)),
    )


FAMILIES: dict[str, Callable[[Read], Codec]] = {
    "AutoencoderKLCogVideoX": cogvideox,
    "AutoencoderKLWan": wan,
    "AutoencoderKLQwenImage": wan,
    "AutoencoderKLHunyuanVideo": hunyuan_video,
    "AutoencoderKLHunyuanVideo15": hunyuan_video15,
    "AutoencoderKLHunyuanImageRefiner": hunyuan_image_refiner,
    "AutoencoderKLLTXVideo": ltx,
    "AutoencoderKLLTX2Video": ltx2,
    "AutoencoderKLCosmos": cosmos,
    "AutoencoderKLMochi": mochi,
    "AutoencoderKLMagvit": magvit,
    "AutoencoderKLAllegro": allegro,
    "AutoencoderKLKVAEVideo": kvae,
    "Kandinsky6SRVAE": kandinsky6,
    "AutoencoderKLMiniMaxH3": minimax_h3,
    "AutoencoderVidTok": vidtok,
}
"""The classes of diffusers whose frame counts are known."""
