"""The memory that a plan tells against what is measured when the step runs."""

from __future__ import annotations

import logging

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.models.plan import call, latent_shape, plan_step
from causalvae_kernels.workloads import small_cogvideox_config

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)

CLIP = (1, 3, 9, 48, 64)
TILED_HERE = {"sample_height": 48, "sample_width": 64}  # tiles of half of that


def _cogvideox(**config):
    return diffusers.AutoencoderKLCogVideoX(**TILED_HERE, **config)


MODELS = {
    "small": lambda: _cogvideox(**small_cogvideox_config()),
    "as 2b": lambda: _cogvideox(block_out_channels=(32, 64, 64, 128), layers_per_block=3, latent_channels=16),
    "wan": lambda: diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ),
    "hunyuan": lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4
    ),
}


def _measured(vae, step, shape, tiled):
    (vae.enable_tiling if tiled else vae.disable_tiling)()
    x = torch.randn(shape).to(vae.dtype)
    with torch.no_grad():
        call(vae, step, x)  # packs weights
        return peak_allocated(lambda: call(vae, step, x))


def _assert_within(predicted, measured, words):
    assert measured / 1.1 <= predicted <= measured * 1.1, f"{words}: predicted {predicted}, measured {measured}"


CASES = [
    ("small", torch.float32, True),
    ("small", torch.bfloat16, True),
    ("small", torch.float32, False),
    ("small", torch.bfloat16, False),
    ("as 2b", torch.float32, True),
    ("as 2b", torch.bfloat16, False),
    ("wan", torch.float32, False),
    ("wan", torch.bfloat16, False),
    ("hunyuan", torch.float32, False),
    ("hunyuan", torch.bfloat16, False),
]


@pytest.mark.parametrize(("name", "dtype", "swapped"), CASES)
def test_prediction_is_what_is_measured(name, dtype, swapped):
    vae = MODELS[name]().eval().requires_grad_(False).to(dtype)
    if swapped:
        swap(vae)
    for step, shape in (("encode", CLIP), ("decode", latent_shape(vae, CLIP))):
        plan = plan_step(vae, step, shape)
        for tiled, predicted in ((False, plan.untiled), (True, plan.tiled)):
            _assert_within(predicted, _measured(vae, step, shape, tiled), f"{step}, tiled {tiled}")
        if name in ("small", "as 2b"):
            assert plan.tiled < plan.untiled  # the clip is larger than a tile


def test_the_native_kernels_allocations_are_counted():
    # `auto` takes them for some shapes and not on every processor: here for all.
    vae = MODELS["small"]().eval().requires_grad_(False)
    swap(vae, backend="cpu")
    shape = latent_shape(vae, CLIP)
    plan = plan_step(vae, "decode", shape)
    _assert_within(plan.untiled, _measured(vae, "decode", shape, False), "decode")
    assert plan.packed > 0
