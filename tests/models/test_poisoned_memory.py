"""Memory that was never written, or was given back, is never read: with NaN in it the bits stay the same."""

from __future__ import annotations

import inspect
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from causalvae_kernels import release_packed_weights, swap
from causalvae_kernels.coder import Arena
from causalvae_kernels.core import native
from causalvae_kernels.models import FAMILIES
from tests.models.test_families import tile
from tests.support.families import HERE, build, clip_of, valid
from tests.support.poison import fresh_memory, poisoned_malloc

diffusers = pytest.importorskip("diffusers")

BACKENDS = [None, "aten"] + (["cpu"] if native.why_no_cpu() is None else [])
SETTINGS = [(backend, dtype) for backend in BACKENDS for dtype in (torch.float32, torch.bfloat16)]
MODES = ("as it is", "any", "tiles", "low", "stream")
ROOT = Path(__file__).resolve().parents[2]


def takes(name: str, mode: str) -> bool:
    """Whether there is something of its own to run for a family."""
    family = FAMILIES[HERE[name].cls]
    if mode == "tiles":  # diffusers' tiled_encode fails for the refiner
        known = inspect.signature(getattr(diffusers, HERE[name].cls).enable_tiling).parameters
        return "tile_sample_min_height" in known and name != "HunyuanImageRefiner"
    return {"low": name == "CogVideoX", "stream": family.chunks is not None}.get(mode, True)


def cases() -> Iterator[Any]:
    """Every mode of every family: with one backend and dtype in turn quickly, with all of them at length."""
    for n, (name, mode) in enumerate((name, mode) for name in HERE for mode in MODES if takes(name, mode)):
        # Without a bfloat16 of its own the processor takes minutes for the framework's convolutions of tiles.
        quick = [s for s in SETTINGS if mode != "tiles" or s[0] == "cpu" or s[1] == torch.float32]
        for backend, dtype in SETTINGS:
            words = (name, mode, backend or "auto", str(dtype).removeprefix("torch."))
            marks = () if (backend, dtype) == quick[n % len(quick)] else pytest.mark.exhaustive
            yield pytest.param(name, mode, backend, dtype, id="-".join(words), marks=marks)


@torch.no_grad()
def run(handle: Any, mode: str, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents and the frames of a clip; weights are packed anew."""
    release_packed_weights()
    if mode == "stream":
        latents = torch.cat(list(handle.encode_stream(clip.split(5, dim=2))), dim=2)
        return latents, torch.cat(list(handle.decode_stream(latents.split(2, dim=2))), dim=2)
    latents = handle.model.encode(clip).latent_dist.mode()
    asked = {"num_frames": clip.shape[2]} if mode == "any" else {}
    return latents, handle.model.decode(latents, **asked).sample


@pytest.mark.parametrize(("name", "mode", "backend", "dtype"), list(cases()))
def test_nothing_unwritten_or_given_back_is_read(name, mode, backend, dtype):
    options = {"any": {"frames": "any"}, "stream": {"frames": "any"}, "low": {"memory": "low"}}.get(mode, {})
    model = build(name, dtype)
    if mode == "tiles":
        tile(model, HERE[name].size)
    handle = swap(model, backend=backend, **options)
    frames = 10 if options.get("frames") else valid(name, 5 if mode == "tiles" else 9)
    clip = clip_of(HERE[name], frames, times=3 if mode == "tiles" else 1, dtype=dtype)
    with fresh_memory(poisoned=False):
        expected = run(handle, mode, clip)
    with fresh_memory(poisoned=True):
        got = run(handle, mode, clip)
    for step, a, b in zip(("encode", "decode"), got, expected, strict=True):
        assert not a.isnan().any(), f"{step}: NaN"
        assert torch.equal(a, b), step


def test_what_must_not_be_read_is_nan():
    with fresh_memory(poisoned=True):
        assert torch.empty(1, 4, 3, 5, 7, dtype=torch.bfloat16).isnan().all()
        arena = Arena(torch.device("cpu"))
        for _ in range(2):
            arena.reserve(4 * 60)
            held = arena.view(0, (60,), (1,), torch.float32)
            assert held.isnan().all()
            held.zero_()


PRELOADED = """
import ctypes, math, sys, pytest, torch
x = torch.zeros(50)
beyond = ctypes.c_float.from_address(x.data_ptr() + x.nbytes)
assert torch.empty(1000).isnan().all() and math.isnan(beyond.value)
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "", *sys.argv[1:]]))
"""


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)  # each of the tests in the process has a limit of its own; all of them take longer
@pytest.mark.parametrize(
    "tests",
    [
        "tests/models/test_stream.py::test_variants_give_the_bits_of_one_call",
        "tests/models/test_families.py::test_parity",
        "tests/models/test_families.py::test_tiling",
        "tests/models/test_low_memory.py::test_the_same_bits",
        "tests/ops/test_causal_conv3d.py",
    ],
)
def test_nothing_is_read_beyond_an_array_or_after_it_was_freed(tests, tmp_path):
    """In a process whose heap is NaN wherever nobody wrote: scratch of C++ and of the framework as well."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if platform.libc_ver()[0] != "glibc" or compiler is None:
        pytest.skip("it takes the place of glibc's malloc, and needs a C compiler")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    environment["LD_PRELOAD"] = str(poisoned_malloc(tmp_path, compiler))
    command = [sys.executable, "-c", PRELOADED, tests]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-4000:]
