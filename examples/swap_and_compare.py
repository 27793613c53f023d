"""Swap a VAE, compare it with the unmodified model, and take the swap out again.

The model is a small CogVideoX VAE with random weights. For a real one return
`AutoencoderKLCogVideoX.from_pretrained(...)` from `build`, or another class of diffusers.
"""

from __future__ import annotations

import time

import torch
from diffusers import AutoencoderKLCogVideoX

from causalvae_kernels import swap


def build() -> AutoencoderKLCogVideoX:
    """Return a small VAE; the default configuration of the class is that of CogVideoX-2b."""
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 48, 48), layers_per_block=1, norm_num_groups=8
    ).eval()


@torch.no_grad()
def reconstruct(vae: AutoencoderKLCogVideoX, video: torch.Tensor) -> torch.Tensor:
    """Encode and decode a video, shape (B, C, T, H, W), pixels in [-1, 1]."""
    return vae.decode(vae.encode(video).latent_dist.mode()).sample


def timed(vae: AutoencoderKLCogVideoX, video: torch.Tensor) -> float:
    """Return the seconds of one call, behind a call that warms up."""
    reconstruct(vae, video)
    began = time.perf_counter()
    reconstruct(vae, video)
    return time.perf_counter() - began


def main() -> None:
    """Print the largest difference, both times, and what was replaced."""
    vae, video = build(), torch.rand(1, 3, 9, 64, 64) * 2 - 1
    expected, before = reconstruct(vae, video), timed(vae, video)

    with swap(vae) as handle:
        frames, after = reconstruct(vae, video), timed(vae, video)
        print(handle.summary())  # print(handle) also lists each module that is left, with the reason

    print(f"largest difference: {(frames - expected).abs().max():.2g}")
    print(f"unmodified {before:.2f} s, swapped {after:.2f} s")
    torch.testing.assert_close(frames, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(reconstruct(vae, video), expected)  # `with` took the swap out again


if __name__ == "__main__":
    main()
