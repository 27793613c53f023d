"""Small configurations of diffusers' video VAEs: every kind of layer of a class, 0.4 to 3 M parameters."""

from __future__ import annotations

from typing import Any

from .vaes import small_cogvideox_config

_WAN = {"base_dim": 16, "z_dim": 4, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]}
_HUNYUAN15 = {"latent_channels": 4, "block_out_channels": (16, 16, 16, 32, 32), "layers_per_block": 1}
_LTX = {
    "latent_channels": 8,
    "block_out_channels": (16, 16, 32, 32),
    "decoder_block_out_channels": (16, 16, 32, 32),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
}
_COGVIDEOX_LIKE = {
    "block_out_channels": (16, 16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "latent_channels": 4,
}

SMALL_VAES: dict[str, dict[str, Any]] = {
    "AutoencoderKLCogVideoX": small_cogvideox_config(),
    "AutoencoderKLWan": _WAN,
    "AutoencoderKLQwenImage": _WAN,
    "AutoencoderKLQwenImage21": {
        **_WAN,
        "decoder_base_dim": 16,
        "temperal_downsample": [False, True, True],
        "latents_mean": [0.0] * 4,
        "latents_std": [1.0] * 4,
    },
    "AutoencoderKLHunyuanVideo": _COGVIDEOX_LIKE,
    "AutoencoderKLHunyuanVideo15": _HUNYUAN15,
    "AutoencoderKLHunyuanImageRefiner": _HUNYUAN15,
    "AutoencoderKLLTXVideo": _LTX,
    "AutoencoderKLLTX2Video": {
        **_LTX,
        "decoder_block_out_channels": (16, 32, 64),
        "decoder_layers_per_block": (1, 1, 1, 1),
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 8,
        "encoder_block_out_channels": (16, 16, 32, 32),
        "decode_block_out_channels": (16, 16, 32, 32),
        "attention_resolutions": (),
        "num_layers": 1,
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32, 32, 64, 64),
        "decoder_block_out_channels": (32, 32, 64, 64),
        "latent_channels": 4,
        "layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLMagvit": _COGVIDEOX_LIKE,
    "AutoencoderKLAllegro": _COGVIDEOX_LIKE,
    "AutoencoderKLKVAEVideo": {"ch": 32, "ch_mult": (1, 1, 2, 2), "num_res_blocks": 1, "z_channels": 4},
    "Kandinsky6SRVAE": {
        "latent_channels": 4,
        "encoder_block_out_channels": (16, 16, 32, 32),
        "decoder_block_out_channels": (16, 16, 32, 32),
        "layers_per_block": 1,
    },
    "AutoencoderKLMiniMaxH3": {
        "latent_channels": 4,
        "block_out_channels": (16, 16, 16, 32, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "decoder_num_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 16,
        "latents_mean": (0.0,) * 4,
        "latents_std": (1.0,) * 4,
    },
    "AutoencoderVidTok": {"ch": 16, "ch_mult": [1, 1, 2, 2], "num_res_blocks": 1, "z_channels": 4},
}
"""By class; the arguments of its constructor."""
