"""Use the ops, and a swapped decoder, under torch.compile: compile_op.py [BACKEND], by default inductor."""

from __future__ import annotations

import sys

import torch
from diffusers import AutoencoderKLWan

from causalvae_kernels import causal_conv3d, rms_norm, swap


def block(x: torch.Tensor, gamma: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return x plus a convolution of its norm: the heart of a residual block, without a graph break."""
    return causal_conv3d(rms_norm(x, gamma), weight, bias, residual=x)


@torch.no_grad()
def main(compiler: str = "inductor") -> None:
    """Compile a block of ops and the decoder of a swapped VAE, and compare both with their eager results."""
    torch.manual_seed(0)
    x, gamma = torch.randn(1, 16, 5, 16, 16), torch.rand(16) + 0.5
    weight, bias = torch.randn(16, 16, 3, 3, 3) / 20, torch.randn(16)
    compiled = torch.compile(block, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(x, gamma, weight, bias), block(x, gamma, weight, bias))
    print("block: compiled without a graph break")

    vae = AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1, dim_mult=[1, 1], temperal_downsample=[True])
    vae.eval()
    latents = torch.randn(1, 4, 1, 8, 8)
    expected = vae.decode(latents).sample
    swap(vae)  # first swap, then compile
    vae.decoder = torch.compile(vae.decoder, backend=compiler)
    torch.testing.assert_close(vae.decode(latents).sample, expected, rtol=1e-3, atol=1e-4)
    print("decoder: swapped and compiled")


if __name__ == "__main__":
    main(*sys.argv[1:2])
