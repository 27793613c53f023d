"""Send any number of frames through a CogVideoX VAE, and see what happens without help."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX

from causalvae_kernels import InvalidInput, frame_rule, plan_frames, swap


@torch.no_grad()
def main() -> None:
    """Print how many frames come back, as shipped, padded, and with an adapted model."""
    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(block_out_channels=(16, 32, 48, 48), layers_per_block=1, norm_num_groups=8)
    vae.eval()
    print("valid counts:", frame_rule(vae).words())

    for count in (13, 16, 17):
        video = torch.rand(1, 3, count, 32, 32) * 2 - 1
        print(f"{count} frames as shipped: {vae(video).sample.shape[2]} come back")

    # 16 frames come back as 16, but the first ones are damaged: plan_frames refuses them.
    try:
        plan_frames(16, vae)
    except InvalidInput as error:
        print(f"plan_frames(16, vae): {error}")

    # Pad by hand: the plan adds frames at the end, and crops them from the result.
    video = torch.rand(1, 3, 16, 32, 32) * 2 - 1
    plan = plan_frames(16, vae, "pad")
    print(plan)
    frames = plan.undo(vae.decode(vae.encode(plan.apply(video)).latent_dist.mode()).sample)
    assert frames.shape == video.shape

    # Or let the model take any number itself, with fewer latents.
    with swap(vae, frames="any") as handle:
        for count in (2, 13, 16):
            video = torch.rand(1, 3, count, 32, 32) * 2 - 1
            encoded = vae.encode(video)
            latents = encoded.latent_dist.mode()  # a plain tensor: the count travels beside it
            frames = vae.decode(latents, num_frames=encoded.num_frames).sample
            print(f"{count} frames adapted: {latents.shape[2]} latents, {frames.shape[2]} come back")
            assert frames.shape[2] == count
        with handle.num_frames(16):  # around code that calls decode by itself
            assert vae.decode(latents).sample.shape[2] == 16


if __name__ == "__main__":
    main()
