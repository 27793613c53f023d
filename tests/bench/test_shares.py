"""Every operator's time goes to one group, and nothing changes by being timed."""

from __future__ import annotations

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.bench import shares
from causalvae_kernels.bench.plot import Stack, plot_shares
from causalvae_kernels.bench.shares import GROUPS, group_of, time_by_group, with_rest
from causalvae_kernels.workloads import small_cogvideox_config

WEIGHTS = {k: torch.zeros(2, 2, *k) for k in ((3, 3, 3), (1, 1, 1), (1, 3, 3), (3, 3))}


@pytest.mark.parametrize(
    ("name", "kernel", "group"),
    [
        ("convolution", (3, 3, 3), "convolution"),
        ("convolution", (1, 1, 1), "convolution"),
        ("convolution", (3, 3), "resampling"),
        ("mkldnn_convolution", (1, 3, 3), "resampling"),
        ("causal_conv3d", (3, 3, 3), "convolution"),
        ("causal_conv3d", (1, 3, 3), "resampling"),
    ],
)
def test_convolutions_by_their_kernel(name, kernel, group):
    assert group_of(name, (torch.zeros(1, 2, 3, 4, 4), WEIGHTS[kernel], None)) == group


def test_other_operators():
    groups = {
        "norm": ("native_group_norm", "group_norm", "spatial_norm", "rms_norm"),
        "copy": ("copy_", "clone", "cat", "constant_pad_nd", "causal_pad3d", "causal_pad3d_", "_to_copy"),
        "resampling": ("upsample_nearest3d", "upsample_conv", "downsample_conv", "avg_pool1d"),
        "convolution": ("addmm", "mm", "bmm"),
        "elementwise": ("add", "add_", "mul", "silu", "silu_", "addcmul", "zero_"),
    }
    for group, names in groups.items():
        for name in names:
            assert group_of(name, ()) == group, name


@pytest.mark.parametrize("backend", [None, "auto", "cpu", "aten"])
def test_the_time_of_a_model_by_a_false_clock(backend, monkeypatch):
    """Each reading is a second after the one before, so that every operator takes a second."""
    diffusers = pytest.importorskip("diffusers")
    readings = iter(range(10**6))
    monkeypatch.setattr(shares.time, "perf_counter", lambda: float(next(readings)))
    vae = diffusers.AutoencoderKLCogVideoX(**small_cogvideox_config()).eval()
    latents = torch.randn(1, 16, 3, 4, 6)
    with torch.no_grad():
        if backend is not None:
            swap(vae, backend=backend)
        expected = vae.decode(latents).sample
        seen = []
        found = time_by_group(lambda: seen.append(vae.decode(latents).sample), rounds=2)
    assert all(torch.equal(y, expected) for y in seen) and len(seen) == 2
    assert tuple(found) == GROUPS[:-1] and all(ms % 1000 == 0 for ms in found.values())
    least = {"convolution": 19, "norm": 17, "resampling": 3}
    assert all(found[group] >= 1000 * number for group, number in least.items()), found
    if (
        backend != "auto"
    ):  # which adds residuals itself where it was measured to be the framework that convolves
        assert (found["elementwise"] == 0) == (backend == "cpu")
    assert sum(found.values()) * 2 <= 1000 * next(readings)


def test_the_rest_is_what_is_left():
    parts = dict.fromkeys(GROUPS[:-1], 2.0)
    assert with_rest(parts, 15.0) == {**parts, "rest": 5.0}
    assert with_rest(parts, 5.0) == {**dict.fromkeys(GROUPS, 1.0), "rest": 0.0}  # a slower run: shares hold
    assert with_rest(dict.fromkeys(GROUPS[:-1], 0.0), 3.0)["rest"] == 3.0


def test_the_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    parts = dict.fromkeys(GROUPS, 1.0)
    plot_shares(tmp_path / "a.png", [Stack("a", parts, parts), Stack("b", parts, parts)], "title")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
