"""Configurations of diffusers' VAEs, as keyword arguments of their classes."""

from __future__ import annotations

from typing import Any


def small_cogvideox_config() -> dict[str, Any]:
    """Return an `AutoencoderKLCogVideoX` of 1.6 M parameters: four levels, one layer each."""
    return {"block_out_channels": (16, 32, 48, 48), "layers_per_block": 1, "norm_num_groups": 8}


def odd_cogvideox_config() -> dict[str, Any]:
    """Return one whose channel counts are multiples of no vector or tile."""
    return {
        "block_out_channels": (6, 9, 9, 15),
        "layers_per_block": 1,
        "norm_num_groups": 3,
        "latent_channels": 5,
    }


def cogvideox_2b_config() -> dict[str, Any]:
    """Return the widths of CogVideoX-2b's VAE (the class's defaults, 215 M parameters)."""
    return {"block_out_channels": (128, 256, 256, 512), "layers_per_block": 3, "latent_channels": 16}
