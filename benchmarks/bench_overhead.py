"""What calls cost beside their kernels: Python calls and time of a small convolution, and of small models.

A convolution beside cat and `F.conv3d`, an encoder and a decoder beside the unmodified ones. All are so small
that kernels are a part of the time only; on a GPU every call is like that.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import causal_conv3d, restore, swap
from causalvae_kernels.bench.timing import percentile, python_calls, time_providers

MOST_CALLS, MOST_TIMES = 40, 2.0
ROUNDS, CALLS = 41, 500


def providers():
    """Return the two, for 8 channels of 2x4x4 with the state of the chunk before."""
    x, state = torch.randn(1, 8, 2, 4, 4), torch.randn(1, 8, 2, 4, 4)
    weight, bias = torch.randn(8, 8, 3, 3, 3), torch.randn(8)

    def ours():
        return causal_conv3d(x, weight, bias, initial_state=state, return_final_state=True)

    def frameworks():
        return F.conv3d(torch.cat([state, x], 2), weight, bias, padding=(0, 1, 1))

    return ours, frameworks


def many(work):
    """Return so many calls as one: a single one is too short for a clock."""

    def run():
        for _ in range(CALLS):
            work()

    return run


@torch.inference_mode()
def test_a_small_convolution_beside_cat_and_conv3d(benchmark):
    ours, frameworks = providers()
    assert torch.allclose(ours()[0], frameworks(), atol=1e-4)
    calls = python_calls(ours)
    timings = time_providers({"ours": many(ours), "cat and conv3d": many(frameworks)}, repeats=ROUNDS)
    pairs = zip(*(timing.samples_ms for timing in timings.values()), strict=True)
    ratios = [a / b for a, b in pairs]
    benchmark.extra_info |= {
        "python_calls": calls,
        "threads": torch.get_num_threads(),
        "us": timings["ours"].p50_ms * 1e3 / CALLS,
        "times_cat_and_conv3d": {p: percentile(ratios, p) for p in (20, 50, 80)},
    }
    benchmark.pedantic(ours, rounds=5, iterations=CALLS)
    assert calls <= MOST_CALLS
    assert percentile(ratios, 50) <= MOST_TIMES


COGVIDEOX = {
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
WAN = {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}
MODELS = {"CogVideoX": ("AutoencoderKLCogVideoX", COGVIDEOX), "Wan": ("AutoencoderKLWan", WAN)}
# Over those of the unmodified model.
MOST_MODEL_CALLS = {
    ("CogVideoX", "decode"): 0.7,
    ("CogVideoX", "encode"): 1.15,
    ("Wan", "decode"): 0.95,
    ("Wan", "encode"): 1.05,
}


@pytest.mark.parametrize("step", ["decode", "encode"])
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_small_model_beside_the_unmodified_one(benchmark, name, step):
    diffusers = pytest.importorskip("diffusers")
    cls, config = MODELS[name]
    vae = getattr(diffusers, cls)(**config).eval()
    x = torch.randn(1, 4, 3, 4, 4) if step == "decode" else torch.randn(1, 3, 9, 32, 32)

    def run():
        made = getattr(vae, step)(x)
        return made.sample if step == "decode" else made.latent_dist.mode()

    def swapped():
        return run()

    calls, expected = {"unmodified": python_calls(run)}, run()
    swap(vae, backend="cpu")
    assert torch.allclose(swapped(), expected, atol=1e-4)
    calls["swapped"] = python_calls(swapped)
    times = {"swapped": [], "unmodified": []}
    for _ in range(15):
        swap(vae, backend="cpu")
        swapped()
        times["swapped"] += time_providers({"swapped": swapped}, repeats=3)["swapped"].samples_ms
        restore(vae)
        times["unmodified"] += time_providers({"unmodified": run}, repeats=3)["unmodified"].samples_ms
    medians = {side: percentile(samples, 50) for side, samples in times.items()}
    ratio = calls["swapped"] / calls["unmodified"]
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "python_calls": calls,
        "times_the_calls": ratio,
        "ms": medians,
        "speedup": medians["unmodified"] / medians["swapped"],
    }
    with swap(vae, backend="cpu"):
        swapped()
        benchmark.pedantic(swapped, rounds=5, iterations=3)
    assert ratio <= MOST_MODEL_CALLS[name, step]
