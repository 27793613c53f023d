"""Tiny models, with random weights, of every video VAE of diffusers whose frame counts are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.moulds import Mould
from tests.support.seeds import seeded

_MOULDS: dict[str, Mould] = {}


@dataclass(frozen=True)
class TinyVAE:
    """A class of diffusers with a configuration and the smallest frames that it takes."""

    cls: str
    config: dict[str, Any]
    size: int = 16
    channels: int = 3
    prepare: Callable[[nn.Module], None] = field(default=lambda model: None)

    def build(self, **overrides: Any) -> Any:
        """Return a fresh model, always with the same weights."""
        config = {**self.config, **overrides}
        if nn.BatchNorm1d(1).weight.is_meta:  # somebody wants a model without weights
            return self._built(config)
        key = repr((self.cls, config, self.prepare))
        if key not in _MOULDS:
            _MOULDS[key] = Mould(self._built(config))
        return _MOULDS[key].cast()

    def _built(self, config: dict[str, Any]) -> nn.Module:
        import diffusers

        with seeded(0):
            model = getattr(diffusers, self.cls)(**config)
        model.eval().requires_grad_(False)
        self.prepare(model)
        return model

    def config_dict(self) -> dict[str, Any]:
        return {"_class_name": self.cls, **self.config}

    def video(self, num_frames: int) -> Tensor:
        generator = torch.Generator().manual_seed(num_frames)
        return torch.rand(1, self.channels, num_frames, self.size, self.size, generator=generator)


def _small_allegro(model: Any) -> None:
    """Windows of the length in time that the class sets, small in space."""
    model.enable_tiling()
    model.kernel, model.stride = (model.kernel[0], 16, 16), (model.stride[0], 8, 8)


_WAN = {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1, "dim_mult": [1, 1, 1, 1]}
_LTX = {
    "latent_channels": 4,
    "block_out_channels": (4, 4, 4, 4),
    "decoder_block_out_channels": (4, 4, 4, 4),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "patch_size": 1,
}
_HUNYUAN15 = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8, 8),
    "layers_per_block": 1,
}

TINY_VAES: dict[str, TinyVAE] = {
    "CogVideoX": TinyVAE(
        "AutoencoderKLCogVideoX",
        {
            "block_out_channels": (4, 4, 4, 4),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 2,
        },
    ),
    "Wan2.1": TinyVAE("AutoencoderKLWan", _WAN),
    "Wan2.2": TinyVAE(
        "AutoencoderKLWan",
        {**_WAN, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
    ),
    "QwenImage": TinyVAE("AutoencoderKLQwenImage", _WAN),
    "HunyuanVideo": TinyVAE(
        "AutoencoderKLHunyuanVideo",
        {
            "block_out_channels": (4, 4, 4, 4),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 2,
        },
    ),
    "HunyuanVideo15": TinyVAE("AutoencoderKLHunyuanVideo15", _HUNYUAN15),
    "HunyuanImageRefiner": TinyVAE("AutoencoderKLHunyuanImageRefiner", _HUNYUAN15),
    "LTX0.9.0": TinyVAE("AutoencoderKLLTXVideo", _LTX, size=8),
    "LTX0.9.5": TinyVAE(
        "AutoencoderKLLTXVideo",
        {
            **_LTX,
            "block_out_channels": (8, 8, 16, 16, 16),
            "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
            "decoder_block_out_channels": (8, 16, 32),
            "spatio_temporal_scaling": (True,) * 4,
            "decoder_spatio_temporal_scaling": (True,) * 3,
            "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "decoder_inject_noise": (False,) * 4,
            "upsample_residual": (True,) * 3,
            "upsample_factor": (2, 2, 2),
            "temporal_compression_ratio": 8,
            "spatial_compression_ratio": 8,
        },
        size=8,
    ),
    "LTX2": TinyVAE(
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 16, 16),
            "decoder_block_out_channels": (8, 16, 32),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1),
            "patch_size": 1,
            "temporal_compression_ratio": 8,
            "spatial_compression_ratio": 8,
        },
    ),
    "Cosmos8x8x8": TinyVAE(
        "AutoencoderKLCosmos",
        {
            "latent_channels": 4,
            "encoder_block_out_channels": (4, 4, 4, 4),
            "decode_block_out_channels": (4, 4, 4, 4),
            "attention_resolutions": (),
            "num_layers": 1,
        },
    ),
    "Mochi": TinyVAE(
        "AutoencoderKLMochi",
        {
            "encoder_block_out_channels": (32, 32, 32, 32),
            "decoder_block_out_channels": (32, 32, 32, 32),
            "latent_channels": 4,
            "layers_per_block": (1, 1, 1, 1, 1),
        },
    ),
    "Magvit(EasyAnimate)": TinyVAE(
        "AutoencoderKLMagvit",
        {
            "latent_channels": 2,
            "block_out_channels": (4, 4, 4, 4),
            "layers_per_block": 1,
            "norm_num_groups": 2,
        },
    ),
    "Allegro": TinyVAE(
        "AutoencoderKLAllegro",
        {
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": 2,
        },
        prepare=_small_allegro,
    ),
    "KVAEVideo": TinyVAE(
        "AutoencoderKLKVAEVideo", {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1, "z_channels": 2}
    ),
    "Kandinsky6SR": TinyVAE(
        "Kandinsky6SRVAE",
        {
            "latent_channels": 2,
            "encoder_block_out_channels": (4, 4, 4, 4),
            "decoder_block_out_channels": (4, 4, 4, 4),
            "layers_per_block": 1,
        },
    ),
    "MiniMaxH3": TinyVAE(
        "AutoencoderKLMiniMaxH3",
        {
            "latent_channels": 2,
            "block_out_channels": (4, 4, 4, 4, 4, 4),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "decoder_num_layers": 1,
            "decoder_num_attention_heads": 1,
            "decoder_attention_head_dim": 16,
            "latents_mean": (0.0,) * 2,
            "latents_std": (1.0,) * 2,
        },
        size=32,
    ),
    "VidTok(causal)": TinyVAE(
        "AutoencoderVidTok", {"ch": 4, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 2}
    ),
}


def encode(model: Any, video: Tensor) -> Tensor:
    """The latents of a video, (B, C, L, h, w)."""
    return model.encode(video).latent_dist.mode()


def decode(model: Any, latents: Tensor) -> Tensor:
    """The frames of latents, in the layout of the model."""
    decoded = model.decode(latents)
    return getattr(decoded, "sample", decoded) if not isinstance(decoded, Tensor) else decoded
