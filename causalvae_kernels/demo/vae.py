"""The VAE of the demo: a small one with random weights, or one from a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core.errors import InvalidInput
from ..core.optional import require
from ..models.loading import load_vae, quiet_diffusers
from ..workloads import small_cogvideox_config

TRAINED_WEIGHTS_NOTE = (
    "a VAE of 1.9 M parameters trained for this demo: do not judge CogVideoX by the pictures"
)

WEIGHTS = Path(__file__).parent / "weights"


def small_random_vae(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A small `AutoencoderKLCogVideoX` with random weights, in evaluation mode, on the CPU.

    Args:
        dtype: Of its parameters.
        seed: The same seed gives the same weights; the global random state is left alone.

    Raises:
        MissingPackage: If diffusers is not installed.
    """
    diffusers = require("diffusers", "the reference VAE")
    with torch.random.fork_rng(devices=[]), quiet_diffusers():
        torch.manual_seed(seed)
        return diffusers.AutoencoderKLCogVideoX(**small_cogvideox_config()).to(dtype).eval()


def trained_vae(dtype: torch.dtype = torch.float32) -> Any:
    """The demo's small `AutoencoderKLCogVideoX`, trained on real clips (`training.py`).

    Args:
        dtype: Of its parameters.

    Raises:
        InvalidInput: If the weights are not here: wheels leave them out.
        MissingPackage: If diffusers is not installed.
    """
    if not WEIGHTS.is_dir():
        raise InvalidInput(
            "the demo's trained weights are not part of an installed wheel, expected a source tree or an "
            "editable install (make demo); or name a diffusers folder with an AutoencoderKLCogVideoX with "
            "--weights FOLDER"
        )
    return load_vae(WEIGHTS, dtype)


def named_vae(weights: Path | None, dtype: torch.dtype = torch.float32) -> tuple[Any, str]:
    """The VAE in a folder, or the trained one of the demo, and what to call it.

    Args:
        weights: As `load_vae`; None for `trained_vae`.
        dtype: Of its parameters.
    """
    if weights is None:
        return trained_vae(dtype), "small trained CogVideoX VAE"
    return load_vae(weights, dtype), f"CogVideoX VAE, {weights.name or weights}"


def spatial_factor(vae: Any) -> int:
    """By how much the VAE makes height and width smaller: both must be multiples of it."""
    return 2 ** (len(vae.config.block_out_channels) - 1)
