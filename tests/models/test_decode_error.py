"""The error of a whole decode with CogVideoX-2b's widths, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.core import native
from causalvae_kernels.parity import compare_decodes, decode_in_float64
from causalvae_kernels.workloads import cogvideox_2b_config

diffusers = pytest.importorskip("diffusers")

# The widths are the model's. Of the four residual blocks of a level there are two here, so that float64 takes
# seconds: the whole depth is in the record of `benchmarks/bench_vae.py`.
CONFIG = cogvideox_2b_config() | {"layers_per_block": 1}
LATENTS = (1, 16, 4, 4, 4)  # two chunks
BACKENDS = ("auto", "cpu") if native.why_no_cpu() is None else ("auto",)
# Of the reference's error, over the norm: the factor of one convolution, here without the ulp of the rule.
FACTORS = {torch.float32: 8, torch.bfloat16: 2}


@pytest.fixture(scope="module")
def model():
    """A model whose weights bfloat16 can hold, so that one float64 run serves both dtypes; no encoder."""
    with torch.device("meta"):
        vae = diffusers.AutoencoderKLCogVideoX(**CONFIG)
    vae.encoder = None
    vae.eval().requires_grad_(False).to_empty(device="cpu")
    for module in vae.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for parameter in vae.parameters():
        parameter.copy_(parameter.bfloat16())
    return vae


@pytest.mark.exhaustive
def test_it_keeps_the_factor_of_one_convolution(model, seed, record_property):
    latents = torch.randn(LATENTS, generator=torch.Generator().manual_seed(seed)).bfloat16()
    oracle = decode_in_float64(model, latents)
    for dtype, factor in FACTORS.items():
        vae = nn.Module.to(copy.deepcopy(model), dtype)
        given = latents.to(dtype)
        with torch.no_grad():
            reference = vae.decode(given).sample
        error = compare_decodes(reference, reference, oracle).error
        assert 0 < error < {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]  # else nothing is compared
        for backend in BACKENDS:
            with torch.no_grad(), swap(vae, backend=backend):
                found = compare_decodes(vae.decode(given).sample, reference, oracle)
            words = f"{dtype} {backend}: {found}; reference {error:.2e}"
            print(words)
            record_property(f"{dtype} {backend}", found.error / error)
            assert found.passed and found.error <= factor * error, words
