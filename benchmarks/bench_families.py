"""Encode and decode of the other families' VAEs at their own widths, swapped, beside the unmodified model.

Sizes are small, so that a CPU takes seconds; weights are random. Measured as in `bench_vae.py`.
"""

from __future__ import annotations

import copy
import functools
import gc
import logging
from typing import Any

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.workloads import make_video

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)

_WAN22 = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
# Name: (class, what differs from its defaults, (frames, height, width), rounds)
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, int, int], int]] = {
    "wan2.1": ("AutoencoderKLWan", {}, (9, 96, 96), 3),
    "wan2.2": ("AutoencoderKLWan", _WAN22, (5, 96, 96), 3),
    "qwen_image": ("AutoencoderKLQwenImage", {}, (1, 192, 192), 5),
    "hunyuanvideo": ("AutoencoderKLHunyuanVideo", {}, (5, 64, 96), 3),
    "ltx": ("AutoencoderKLLTXVideo", {}, (9, 256, 256), 3),
    "mochi": ("AutoencoderKLMochi", {}, (7, 64, 64), 3),
    "cosmos": ("AutoencoderKLCosmos", {}, (9, 64, 64), 3),
}
DTYPES = (torch.float32, torch.bfloat16)
SETTLING = 4  # calls until the packed weights that stay under the budget are those that gain most
# Relative difference to the unmodified model; both are rounded.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 8e-2}


@functools.lru_cache(maxsize=1)
def _models(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    gc.collect()  # a swapped model is a cycle; what was packed of the last one goes with it
    cls, config, _, _ = MODELS[name]
    torch.manual_seed(0)
    vae = getattr(diffusers, cls)(**config).eval().requires_grad_(False).to(dtype)
    swapped = copy.deepcopy(vae)
    swap(swapped)
    return vae, swapped


@torch.no_grad()
def _run(vae: torch.nn.Module, step: str, given: torch.Tensor) -> torch.Tensor:
    return vae.encode(given).latent_dist.mode() if step == "encode" else vae.decode(given).sample


@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.benchmark(group="families")
def test_family(benchmark: Any, race_models: Any, name: str, dtype: torch.dtype, step: str) -> None:
    reference, swapped = _models(name, dtype)
    *_, size, rounds = MODELS[name]
    if (name, dtype) == ("cosmos", torch.bfloat16):
        pytest.skip("torch averages no bfloat16 on a CPU: the unmodified model cannot encode")
    clip = make_video(*size, dtype=dtype)
    given = clip if step == "encode" else _run(reference, "encode", clip)
    expected = _run(reference, step, given)
    for _ in range(SETTLING):
        got = _run(swapped, step, given)
    difference = ((got - expected).float().norm() / expected.float().norm()).item()
    assert difference < LIMITS[dtype], f"no timing without parity: {difference:.1e}"
    race_models(
        functools.partial(_run, reference, step, given), functools.partial(_run, swapped, step, given), rounds
    )
    benchmark.extra_info["relative_difference"] = difference
    benchmark.extra_info["size"] = "×".join(map(str, size))
