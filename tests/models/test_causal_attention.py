"""Causal attention without a mask: the same numbers, less memory, one schedule at any size."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import plan_memory, swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.models.causal_attention import attend
from tests.support.tiny_vaes import TINY_VAES, decode, encode

pytest.importorskip("diffusers")
NAMES = ("HunyuanVideo", "HunyuanVideo15")


@pytest.mark.parametrize(("frames", "pixels"), [(1, 6), (2, 1), (5, 7), (9, 4)])
def test_attention_is_that_under_a_mask(frames, pixels):
    query, key, value = torch.randn(3, 2, 3, frames * pixels, 8, dtype=torch.float64).unbind()
    number = torch.arange(frames).repeat_interleave(pixels)
    seen = number[:, None] >= number[None]
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    torch.testing.assert_close(attend(query, key, value, frames), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (5, 2), (13, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_of_the_model(name, frames, batch):
    model = TINY_VAES[name].build().double().eval().requires_grad_(False)
    swapped = copy.deepcopy(model)
    handle = swap(swapped, backend="aten")
    clip = torch.randn(batch, 3, frames, 32, 48, dtype=torch.float64)
    # One by one: diffusers' mask for HunyuanVideo 1.5 does not fit a batch.
    latents = torch.cat([encode(model, one) for one in clip.split(1)])
    decoded = torch.cat([decode(model, one) for one in latents.split(1)])
    torch.testing.assert_close(encode(swapped, clip), latents, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(decode(swapped, latents), decoded, rtol=1e-9, atol=1e-9)
    assert all(known.schedule is not None for known in handle._link.coders.known.values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients(name):
    model = TINY_VAES[name].build().double().requires_grad_(True)
    swapped = copy.deepcopy(model)
    swap(swapped, backend="aten")
    latents = encode(model, torch.randn(1, 3, 9, 32, 32, dtype=torch.float64)).detach()
    for vae in (model, swapped):
        vae.decode(latents).sample.square().sum().backward()
    for (path, wanted), found in zip(model.named_parameters(), swapped.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), path
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-7, atol=1e-9, msg=path)


@pytest.mark.parametrize(("name", "frames"), [("HunyuanVideo", 9), ("HunyuanVideo15", 5)])
def test_no_mask_is_made(name, frames):
    model = TINY_VAES[name].build().eval().requires_grad_(False)
    swapped = copy.deepcopy(model)
    handle = swap(swapped)
    channels = model.config.latent_channels
    latents = torch.randn(1, channels, frames, 12, 12)
    mask = (frames * 144) ** 2 * 4
    with torch.no_grad():
        peaks = [peak_allocated(lambda vae=vae: decode(vae, latents)) for vae in (model, swapped)]
    assert peaks[1] < peaks[0] - 0.9 * mask
    assert all(known.schedule is not None for known in handle._link.coders.known.values())


def test_a_clip_whose_mask_would_not_fit_is_one_schedule():
    """The mask of 17 latents of 32x32 has 3 * 10^8 elements."""
    swapped = TINY_VAES["HunyuanVideo"].build().eval().requires_grad_(False)
    with_mask = plan_memory(swapped, 65, 256, 256).untiled
    swap(swapped)
    assert plan_memory(swapped, 65, 256, 256).untiled < with_mask / 2


@pytest.mark.parametrize("change", ["processor", "hook", "layers"])
def test_what_is_not_understood_runs_as_it_is(change):
    from diffusers.models.attention_processor import AttnProcessor

    model = TINY_VAES["HunyuanVideo"].build().eval().requires_grad_(False)
    seen, block = [], model.decoder.mid_block
    if change == "processor":
        block.attentions[0].set_processor(AttnProcessor())
    if change == "hook":
        block.attentions[0].register_forward_hook(lambda *_: seen.append(1))
    if change == "layers":
        block.attentions.append(copy.deepcopy(block.attentions[0]))
        block.resnets.append(copy.deepcopy(block.resnets[1]))
    latents = torch.randn(1, 2, 3, 4, 4)
    with torch.no_grad():
        wanted = decode(model, latents)
        calls = len(seen)
        handle = swap(model)
        torch.testing.assert_close(decode(model, latents), wanted, rtol=1e-3, atol=1e-4)
    entry = next(e for e in handle.report if e.name == "decoder.mid_block")
    assert entry.replaced == (change == "layers")
    assert len(seen) == 2 * calls
