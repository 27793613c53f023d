"""What encoding or decoding with CogVideoX's VAE moves, as shipped and swapped; nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from ..bench.hollow_run import HollowRun, assumed
from ..bench.traffic import Traffic, count_traffic
from ..core.optional import require
from ..models import swap
from ..temporal.schedule import latents_of

REFERENCE = "reference"
STEPS = ("decode", "encode")
# Backends that are counted though their device is not here.
_ON_GPU = ("triton",)


def vae_traffic(
    config: dict[str, Any],
    step: str,
    size: Sequence[int],
    dtype: torch.dtype,
    backends: Sequence[str],
) -> dict[str, Traffic]:
    """Return the traffic of the unmodified model, under `REFERENCE`, and of the swapped one by backend.

    Args:
        config: Of the model, such as `cogvideox_2b_config()`.
        step: "decode" or "encode".
        size: (frames, height, width) of the clip; height and width multiples of 8.
        dtype: Of model and clip.
        backends: What each swap is asked for: "auto", "aten", "cpu", or "triton", whose GPU need not be here;
            its model has weights in channels_last_3d.

    Raises:
        CausalVAEError: diffusers is not installed.
    """
    require("diffusers", "traffic")
    from diffusers import AutoencoderKLCogVideoX

    frames, height, width = size
    with HollowRun():
        vae = AutoencoderKLCogVideoX(**config).eval().requires_grad_(False)
        nn.Module.to(vae, dtype=dtype)  # the class's own `to` warns
        shape = (1, vae.config.in_channels, frames, height, width)
        if step == "decode":
            latents = latents_of(frames, 4)
            shape = (1, vae.config.latent_channels, latents, height // 8, width // 8)
        given = torch.empty(shape, dtype=dtype)
    run = _step(vae, step, given)
    found = {REFERENCE: count_traffic(run)}
    for backend in backends:
        gpu = backend in _ON_GPU
        with assumed(backend) if gpu else nullcontext():
            if gpu:
                _channels_last(vae)
            with swap(vae, backend=backend):
                found[backend] = count_traffic(run)
    return found


def _step(vae: nn.Module, step: str, given: torch.Tensor) -> Callable[[], object]:
    if step == "decode":
        return lambda: vae.decode(given).sample
    return lambda: vae.encode(given).latent_dist.mode()


def _channels_last(vae: nn.Module) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = torch.empty_like(module.weight, memory_format=torch.channels_last_3d)
