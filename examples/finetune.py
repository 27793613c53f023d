"""Fine-tune a swapped VAE with gradient checkpointing.

A small CogVideoX VAE with random weights learns one clip for a few steps. With gradients, modules are
replaced one by one, and weights that change in every step are convolved by the framework. Evaluation between
the steps takes the fast path.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX

from causalvae_kernels import swap


def clip() -> torch.Tensor:
    """Return a bright square that moves over a dark background, shape (1, 3, 9, 32, 32)."""
    video = torch.full((1, 3, 9, 32, 32), -0.5)
    for frame in range(9):
        video[:, :, frame, 8:20, 2 * frame : 2 * frame + 12] = 0.5
    return video


def main(steps: int = 6) -> list[float]:
    """Train, print and return the losses of the steps."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)
    vae.enable_gradient_checkpointing()
    vae.train()
    # Give the precision to swap: a context that is closed before backward would not cover the recomputation.
    handle = swap(vae, precision="high")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3)
    video, losses = clip(), []
    for step in range(steps):
        optimizer.zero_grad()
        latents = vae.encode(video).latent_dist.mode()
        loss = (vae.decode(latents).sample - video).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        print(f"step {step}: MSE {losses[-1]:.4f}")

    vae.eval()
    with torch.no_grad():  # new weights are noticed, and packed again
        frames = vae(video).sample
    print(f"evaluation: MSE {(frames - video).square().mean():.4f}")
    handle.restore()
    with torch.no_grad():
        torch.testing.assert_close(vae(video).sample, frames, rtol=1e-3, atol=1e-3)
    return losses


if __name__ == "__main__":
    main()
