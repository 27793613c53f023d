"""What `AutoencoderKLKVAEVideo` alone has: caches in dictionaries, filled segment by segment."""

from __future__ import annotations

import copy

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core import native
from tests.support.cover import quick
from tests.support.models import assert_parity, replaced_names
from tests.support.tiny_vaes import TINY_VAES

TINY = TINY_VAES["KVAEVideo"]


def _tensors(cache, path=""):
    if isinstance(cache, torch.Tensor):
        return {path: cache}
    if isinstance(cache, dict | list):
        parts = cache.items() if isinstance(cache, dict) else enumerate(cache)
        return {k: v for name, part in parts for k, v in _tensors(part, f"{path}/{name}").items()}
    return {path: torch.tensor(float("nan") if cache is None else float(cache))}


def _assert_caches(got, expected):
    got, expected = _tensors(got), _tensors(expected)
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].shape == tensor.shape, name
        assert torch.allclose(got[name], tensor, atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("segments", [(17, 16, 8), (5, 4), (9, 8), (1,), (3, 4)])
@pytest.mark.parametrize("backend", quick(["aten", "cpu"], ["cpu"]))
@torch.no_grad()
def test_encoder_segments_fill_the_caches_as_before(backend, segments):
    plain, vae = TINY.build(), TINY.build()
    swap(vae, backend=backend)
    caches = [model._make_encoder_cache() for model in (plain, vae)]
    for frames in segments:
        segment = torch.randn(2, 3, frames, 16, 24)
        outcomes = []
        for model, cache in zip((plain, vae), caches, strict=True):
            try:
                outcomes.append(model.encoder(segment, cache))
            except RuntimeError as error:
                outcomes.append(str(error))
        if isinstance(outcomes[0], str):
            assert outcomes[1] == outcomes[0]
            return
        assert torch.allclose(outcomes[1], outcomes[0], atol=1e-4)
        _assert_caches(caches[1], caches[0])


@pytest.mark.parametrize("segments", [(5, 4, 4), (1,), (2, 4), (5, 1), (5, 2)])
@pytest.mark.parametrize("backend", quick(["aten", "cpu"], ["cpu"]))
@torch.no_grad()
def test_decoder_segments_fill_the_caches_as_before(backend, segments):
    plain, vae = TINY.build(), TINY.build()
    swap(vae, backend=backend)
    caches = [model._make_decoder_cache() for model in (plain, vae)]
    for latents in segments:
        segment = torch.randn(2, 2, latents, 2, 3)
        expected, got = plain.decoder(segment, caches[0]), vae.decoder(segment, caches[1])
        assert torch.allclose(got, expected, atol=1e-4)
        _assert_caches(caches[1], caches[0])


@torch.no_grad()
def test_swapped_in_the_middle_of_a_clip():
    plain, vae = TINY.build(), TINY.build()
    caches = [model._make_encoder_cache() for model in (plain, vae)]
    parts = [torch.randn(1, 3, frames, 16, 16) for frames in (17, 16, 8)]
    expected = [plain.encoder(part, caches[0]) for part in parts]
    got = [vae.encoder(parts[0], caches[1])]
    with swap(vae, backend="aten"):
        got.append(vae.encoder(parts[1], caches[1]))
    got.append(vae.encoder(parts[2], caches[1]))
    assert torch.allclose(torch.cat(got, 2), torch.cat(expected, 2), atol=1e-4)


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="needs the native module")
@torch.no_grad()
def test_two_activations_in_a_block():
    """Besides its input and the caches: what a convolution reads, and what it writes."""
    vae, x = TINY.build(), torch.randn(1, 32, 8, 24, 24)
    block = vae.encoder.mid.block_1

    def work():
        block(x, None, vae._make_encoder_cache()["mid_1"])

    with swap(vae, backend="cpu"):
        work()
        caches = 2 * 2 * 26 * 26 * 32 * x.itemsize
        assert peak_allocated(work) <= 2.5 * x.nbytes + caches


@torch.no_grad()
def test_an_odd_number_of_frames_behind_the_first_segment():
    """The op would take the first of them for the first of a video, which has a latent of its own."""
    plain, vae = TINY.build(), TINY.build()
    swap(vae, backend="aten")
    x, zq, found = torch.randn(1, 32, 9, 4, 6), torch.randn(1, 2, 3, 2, 3), []
    for model in (plain, vae):
        cache = {"norm": {"mean": 1, "var": 1}}
        found.append(model.decoder.mid.block_1.norm1(x, zq, cache=cache))
    assert torch.allclose(*found, atol=1e-4)


@torch.no_grad()
def test_written_where_the_caller_wants_it():
    vae = TINY.build()
    swap(vae, backend="aten")
    linear = vae.decoder.up[1].upsample.linear
    x = torch.randn(2, 32, 3, 4, 6)
    place = torch.empty_like(x)
    assert linear(x, write_to=place) is place
    assert torch.allclose(place, type(linear).forward(linear, x), atol=1e-5)


def test_gradients_pass_through_what_is_written():
    vae = TINY.build()
    swap(vae, backend="aten")
    linear = vae.decoder.up[1].upsample.linear
    x = torch.randn(1, 32, 2, 4, 4, requires_grad=True)
    linear(x, write_to=torch.empty(1, 32, 2, 4, 4)).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("encoder.conv_in", {"time_kernel_size": 1}, "not the one that it was built with"),
        ("encoder.conv_in", {"stride": (2, 1, 1)}, "with stride"),
        ("encoder.conv_in.conv", {"groups": 3}, "groups=3"),
        ("encoder.mid.block_1.conv2", {"height_pad": 0}, "not the one that it was built with"),
        ("decoder.norm_out", {"add_conv": True}, "convolves the upsampled latents"),
        ("decoder.up.1.upsample.linear", {"padding": (1, 0, 0)}, "its convolution is"),
        ("decoder.up.1.upsample.spatial_conv", {"padding_mode": "circular"}, "'circular'"),
        ("decoder.up.1.upsample.spatial_conv", {"stride": (1, 3, 3)}, "not one that causal_conv3d takes"),
    ],
)
def test_what_is_left_and_why(path, change, words):
    vae = TINY.build()
    vars(vae.get_submodule(path)).update(change)
    with swap(vae) as handle:
        left = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
        parent = path.rpartition(".")[0]
        assert any(words in left.get(name, "") for name in (path, parent)), left


def test_checkpointing_gives_other_gradients_in_diffusers_own_model():
    """Its blocks run again with the caches that their first run has left."""
    gradients = []
    for checkpointing in (False, True):
        vae = TINY.build().double().train().requires_grad_(True)
        if checkpointing:
            vae.enable_gradient_checkpointing()
        vae(TINY.video(5).double()).sample.square().mean().backward()
        gradients.append(vae.decoder.conv_in.conv.weight.grad)
    assert not torch.allclose(*gradients, rtol=1e-2)


@pytest.mark.exhaustive
@torch.no_grad()
def test_real_widths():
    reference = TINY.build(ch=128, ch_mult=(1, 2, 4), num_res_blocks=1, z_channels=4)
    vae = copy.deepcopy(reference)
    with swap(vae, backend="aten") as handle:
        assert_parity(reference, vae, TINY.video(5))
        assert len(replaced_names(handle)) > 20
