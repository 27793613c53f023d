"""`handle.encode`, `handle.decode`: the numbers of the model's own call, in memory that is allocated once."""

from __future__ import annotations

import functools

import pytest
import torch

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.bench.memory import peak_allocated
from tests.support.tiny_vaes import TINY_VAES

pytest.importorskip("diffusers")
FAMILIES = ["CogVideoX", "Wan2.1", "Wan2.2", "QwenImage", "Mochi", "HunyuanVideo"]


@functools.cache
def _handle(name, **options):
    torch.manual_seed(0)
    return swap(TINY_VAES[name].build().eval().requires_grad_(False), frames="any", **options)


def _clip(name, frames, batch=1, size=(32, 48)):
    model = _handle(name).model
    codec = _handle(name)._family.chunks
    channels = 3 if codec is None else codec.channels(model)[0]
    return torch.randn(batch, channels, frames, *size)


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (9, 2), (16, 1), (18, 1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_numbers_of_the_models_own_call(name, frames, batch):
    handle, clip = _handle(name), _clip(name, frames, batch)
    with torch.no_grad():
        wanted = handle.model.encode(clip).latent_dist.mode()
        latents = handle.encode(clip)
        torch.testing.assert_close(latents, wanted, rtol=0, atol=1e-5)
        decoded = handle.decode(wanted, num_frames=frames)
        expected = handle.model.decode(wanted, num_frames=frames).sample
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)
    assert decoded.shape[2] == frames and decoded.is_contiguous()
    assert handle.decode(wanted).shape[2] >= frames
    if name == "CogVideoX":
        assert torch.equal(latents, wanted) and torch.equal(decoded, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_of_pixels(name):
    handle = _handle(name)
    latents = handle.encode(_clip(name, 9)) * 4  # beyond [-1, 1], too
    frames = handle.decode(latents)
    wanted = ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(handle.decode(latents, dtype=torch.uint8), wanted)
    out = torch.empty(wanted.shape[0], *wanted.shape[2:], 3, dtype=torch.uint8).movedim(-1, 1)
    assert handle.decode(latents, out=out) is out and torch.equal(out, wanted)
    assert handle.decode(latents, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["CogVideoX", "Wan2.1", "Mochi"])
def test_a_callback_sees_each_part_and_may_end_it(name):
    handle, seen = _handle(name), []
    latents = handle.encode(_clip(name, 17))
    frames = handle.decode(latents, on_chunk=lambda *call: seen.append((*call[:2], call[2].clone())))
    assert [index for index, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)}
    assert torch.equal(torch.cat([part for *_, part in seen], dim=2), frames)

    def stop(index, total, part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        handle.decode(latents, on_chunk=stop)
    assert torch.equal(handle.decode(latents), frames)


def test_a_bar_is_shown(capsys):
    handle = _handle("CogVideoX")
    handle.decode(handle.encode(_clip("CogVideoX", 17)), progress=True)
    assert "100%" in capsys.readouterr().err


def test_no_gradients_are_recorded():
    handle = swap(TINY_VAES["CogVideoX"].build(), frames="any")  # parameters that require gradients
    latents = handle.encode(_clip("CogVideoX", 5))
    assert not latents.requires_grad and not handle.decode(latents).requires_grad


def test_wan_takes_several_latents_at_a_time():
    """As its own call does: each pass is a chunk."""
    passes = []
    latents = _handle("Wan2.1").encode(_clip("Wan2.1", 33))
    _handle("Wan2.1").decode(latents, on_chunk=lambda index, total, part: passes.append(part.shape[2]))
    assert passes == [17, 16]
    passes.clear()
    one = _handle("Wan2.1", chunk="as_is")
    one.decode(latents, on_chunk=lambda index, total, part: passes.append(part.shape[2]))
    assert passes == [1, *[4] * 8]


def test_the_result_is_there_once():
    """What more frames cost; diffusers holds all chunks when it concatenates them."""
    handle, peaks = _handle("CogVideoX"), {"own": [], "ours": [], "bytes": []}
    for frames in (65, 129):
        latents = handle.encode(_clip("CogVideoX", frames, size=(64, 64)))
        for name, run in (
            ("own", lambda z: handle.model.decode(z).sample),
            ("ours", handle.decode),
            ("bytes", lambda z: handle.decode(z, dtype=torch.uint8)),
        ):
            peaks[name].append(peak_allocated(functools.partial(run, latents)))
    more = {name: second - first for name, (first, second) in peaks.items()}
    frames = 64 * 64 * 64 * 3 * 4
    assert more["own"] > 1.8 * frames  # the peak of the shorter clip may lie in the middle of a chunk
    assert more["ours"] < 1.05 * frames and more["bytes"] < 0.3 * frames


@pytest.mark.parametrize("name", ["CogVideoX", "Wan2.1"])
def test_tiled_where_it_does_not_fit(name):
    model = TINY_VAES[name].build().eval().requires_grad_(False)
    model.enable_tiling(32, 32, *((0.25, 0.25) if name == "CogVideoX" else (24, 24)))
    tiled = swap(model, frames="any")
    clip = _clip(name, 9, size=(64, 64))
    latents = tiled.encode(clip)
    wanted = tiled.decode(latents)
    model.disable_tiling()
    whole = tiled.decode(latents)
    assert not torch.allclose(whole, wanted, rtol=0, atol=1e-4)
    budget = peak_allocated(lambda: tiled.decode(latents)) // 2
    tiled.restore()
    auto = swap(model, frames="any", tiling="auto", memory_budget=budget)
    torch.testing.assert_close(auto.decode(latents), wanted, rtol=0, atol=1e-5)
    assert not model.use_tiling


@pytest.mark.parametrize("name", ["CogVideoX", "Mochi"])
def test_what_is_refused(name):
    handle, clip = _handle(name), _clip(name, 9)
    latents = handle.encode(clip)
    for options, sentence in (
        ({"num_frames": 99}, "num_frames"),
        ({"out": torch.empty(1)}, r"out has shape \(1,\), expected \(1, 3, "),
        ({"out": "memory"}, "out is a str, expected a tensor"),
        ({"dtype": torch.int32}, "dtype is torch.int32, expected one of float32"),
        ({"out": torch.empty(1), "dtype": torch.uint8}, "got out and device or dtype"),
    ):
        with pytest.raises(InvalidInput, match=f"decode: .*{sentence}"):
            handle.decode(latents, **options)
    with pytest.raises(InvalidInput, match="decode: latents"):
        handle.decode(latents[0])
    with pytest.raises(InvalidInput, match='frames="any"'):
        swap(TINY_VAES[name].build()).decode(latents)
