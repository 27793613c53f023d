"""Encode and decode of `AutoencoderKLCogVideoX`, swapped, beside the unmodified model.

The measured function is the swapped model's; before every round the unmodified one runs on the same input
and is timed as well, so that both see the same machine. Parity is checked before anything is timed: small
decodes against float64, and the figures are in the record; all others against the unmodified model.

The record also holds where the time goes, by group of operators, in runs of their own with a clock around
each; the bytes that each model moves, counted; and the peak of allocated memory.
"""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.bench.shares import time_by_group, with_rest
from causalvae_kernels.bench.traffic import count_traffic
from causalvae_kernels.core import native
from causalvae_kernels.parity import compare_decodes, decode_in_float64
from causalvae_kernels.workloads import cogvideox_2b_config, make_video, small_cogvideox_config

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)

CONFIGS = {"small": small_cogvideox_config, "2b": cogvideox_2b_config}
# (configuration, frames, height, width, rounds)
SIZES = (
    ("small", 8, 32, 32, 15),
    ("small", 9, 64, 64, 15),
    ("small", 17, 144, 176, 5),
    ("2b", 1, 64, 64, 9),
    ("2b", 9, 32, 48, 7),
    ("2b", 9, 96, 144, 7),
)
DTYPES = (torch.float32, torch.bfloat16)
# Pixels of all frames of a decode that takes float64 some seconds.
ORACLE = {"small": 17 * 144 * 176, "2b": 9 * 32 * 48}
# Relative difference to the unmodified model, where there is no oracle. Both are rounded.
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 8e-2}


@functools.lru_cache(maxsize=1)
def _models(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCogVideoX(**CONFIGS[name]()).eval().requires_grad_(False).to(dtype)
    swapped = copy.deepcopy(vae)
    swap(swapped)
    return vae, swapped


@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}-{s[1]}x{s[2]}x{s[3]}")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.benchmark(group="cogvideox")
def test_vae(
    benchmark: Any, race_models: Any, size: tuple[str, int, int, int, int], dtype: torch.dtype, step: str
) -> None:
    name, frames, height, width, rounds = size
    reference, swapped = _models(name, dtype)
    clip = make_video(frames, height, width, dtype=dtype)

    def run(vae: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if step == "encode":
                return vae.encode(given).latent_dist.mode()
            return vae.decode(given).sample

    with torch.no_grad():
        given = clip if step == "encode" else reference.encode(clip).latent_dist.mode()
    expected, got = run(reference, given), run(swapped, given)
    difference = ((got - expected).float().norm() / expected.float().norm()).item()
    assert difference < LIMITS[dtype], "no timing without parity"
    if step == "decode" and frames * height * width <= ORACLE[name]:
        benchmark.extra_info["relative_error"] = _errors(reference, given, expected, got)

    race_models(functools.partial(run, reference, given), functools.partial(run, swapped, given), rounds)
    benchmark.extra_info["relative_difference"] = difference
    sides = {"reference": reference, "swapped": swapped}
    for side, vae in sides.items():
        call = functools.partial(run, vae, given)
        groups = time_by_group(call, max(rounds // 3, 1))
        groups = with_rest(groups, benchmark.extra_info[f"{side}_p50_ms"])
        benchmark.extra_info[f"{side}_ms_by_group"] = {name: round(ms, 3) for name, ms in groups.items()}
        moved = count_traffic(call)
        benchmark.extra_info[f"{side}_bytes"] = moved.bytes
        benchmark.extra_info[f"{side}_bytes_besides_convolutions"] = moved.besides_convolutions


def _errors(
    reference: torch.nn.Module, latents: torch.Tensor, expected: torch.Tensor, got: torch.Tensor
) -> dict[str, float]:
    """Return the errors of a decode against float64: unmodified, swapped, and on our own kernels alone."""
    oracle = decode_in_float64(reference, latents)
    decoded = {"reference": expected, "swapped": got}
    if native.why_no_cpu() is None:
        with torch.no_grad(), swap(reference, backend="cpu"):
            decoded["cpu"] = reference.decode(latents).sample
    found = {name: compare_decodes(y, expected, oracle) for name, y in decoded.items()}
    for name, comparison in found.items():
        assert comparison.passed, f"no timing without parity: {name}: {comparison}"
    return {name: comparison.error for name, comparison in found.items()}
