"""The encoder and the decoder as a whole: what is overwritten must be ours, and nothing is copied."""

from __future__ import annotations

import cProfile
import gc
import math
import pstats

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.core import native
from tests.support.copies import CountedElements
from tests.support.models import assert_parity, clip_of

NATIVE = pytest.mark.skipif(native.why_no_cpu() is not None, reason="no native CPU module")


def tensors_in(cache):
    """Return the tensors of a nested cache."""
    if isinstance(cache, torch.Tensor):
        return [cache]
    return [t for part in cache.values() for t in tensors_in(part)] if isinstance(cache, dict) else []


# Frames that an op writes by copying others, (channels, frames, height, width): the first of an odd number,
# which is not averaged, and the second of every pair that time-doubling makes.
REPEATED = {
    "encoder": ((16, 1, 16, 24), (32, 1, 8, 12)),
    "decoder": ((48, 2, 8, 12), (48, 4, 16, 24)),
}


@NATIVE
@pytest.mark.parametrize("coder", REPEATED)
def test_nothing_is_copied_but_the_state_and_the_layout_of_the_input(coder, build):
    vae = build()
    x = torch.randn(1, 3, 9, 16, 24) if coder == "encoder" else torch.randn(1, 16, 3, 4, 6)
    swap(vae, backend="cpu")
    with torch.no_grad():
        _, cache = getattr(vae, coder)(x)
        with CountedElements() as counted:
            getattr(vae, coder)(x, conv_cache=cache)
    state = sum(t.numel() for t in tensors_in(cache))
    layout = x.numel()  # into channels_last_3d; the last convolution writes the layout of the result
    assert counted.elements == state + layout + sum(math.prod(shape) for shape in REPEATED[coder])


@NATIVE
@torch.inference_mode()
@pytest.mark.parametrize(("coder", "shape"), [("encoder", (1, 3, 9, 16, 24)), ("decoder", (1, 16, 3, 4, 6))])
def test_a_run_makes_no_more_calls_than_the_unmodified_model(coder, shape, build):
    """Measured: 0.65 and 1.05 times as many; without schedules it was nine times as many."""
    vae, x, counts = build(), torch.randn(shape), []
    root = getattr(vae, coder)
    for swapped in (False, True):
        if swapped:
            swap(vae, backend="cpu")
            root(x)
        profile = cProfile.Profile()
        gc.collect()
        gc.disable()  # finalizers of what other tests left would be counted
        try:
            profile.runcall(root, x)
        finally:
            gc.enable()
        counts.append(pstats.Stats(profile).total_calls)
    if counts[1] > 1.1 * counts[0]:
        pstats.Stats(profile).sort_stats("ncalls").print_stats(20)
    assert counts[1] <= 1.1 * counts[0], counts


@pytest.mark.parametrize(("backend", "low"), [("aten", torch.float32), ("cpu", torch.bfloat16)])
def test_what_the_caller_holds_is_not_overwritten(backend, low, build):
    if backend == "cpu" and native.why_no_cpu():
        pytest.skip("no native CPU module")
    vae = build(dtype=low)
    latents = torch.randn(1, 16, 3, 4, 6, dtype=low)
    with torch.no_grad(), swap(vae, backend=backend):
        first, cache = vae.decoder(latents)
        held = [latents, first, *tensors_in(cache)]
        before = [t.clone() for t in held]
        vae.decoder(latents, conv_cache=cache)
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "conv_in",
        "mid_block",
        "mid_block.resnets.0",
        "mid_block.resnets.0.norm1",
        "up_blocks.2.resnets.0.conv_shortcut",
        "up_blocks.0.resnets.0",
        "up_blocks.1.resnets.0.conv1",
        "up_blocks.1.resnets.1.norm2",
        "up_blocks.0.upsamplers.0",
        "norm_out",
        "conv_act",
    ],
)
def test_what_a_hook_keeps_is_not_overwritten(name, build):
    """A probe on any module sees what the unmodified model gives there, also after the run."""
    latents, seen = torch.randn(1, 16, 3, 4, 6), []

    def keep(module, arguments, output):
        seen[-1].append(arguments[0])
        seen[-1].append(output[0] if isinstance(output, tuple) else output)

    for swapped in (False, True):
        seen.append([])
        vae = build()
        if swapped:
            swap(vae)
        vae.decoder.get_submodule(name).register_forward_hook(keep)
        with torch.no_grad():
            vae.decoder(latents)
    for expected, got in zip(*seen, strict=True):
        assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max())


def test_gradients_need_fresh_memory(build):
    """With gradients nothing is reused: they are those of the unmodified model."""
    latents, grads = torch.randn(1, 16, 3, 4, 6), []
    for swapped in (False, True):
        vae = build().requires_grad_(True)
        handle = swap(vae) if swapped else None
        given = latents.clone().requires_grad_()
        vae.decoder(given)[0].square().mean().backward()
        grads.append([given.grad, *(p.grad for p in vae.decoder.parameters())])
    coders = handle._link.coders
    assert not coders.idle
    for got, expected in zip(*reversed(grads), strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())
    with torch.no_grad():
        vae.decoder(latents)
    assert coders.idle, "without gradients the arena is used"


def test_parity_in_a_stream_of_chunks(build):
    vae, other = build(), build()
    swap(other)
    assert_parity(vae, other, clip_of(17))


def test_a_block_of_another_class_runs_as_it_is(build):
    """Its forward is not ours to bypass, and need not have the parts that ours has."""

    class Skip(torch.nn.Module):
        def forward(self, hidden_states, temb=None, zq=None, conv_cache=None):
            return 2 * hidden_states, {}

    latents, found = torch.randn(1, 16, 3, 4, 6), []
    for swapped in (False, True):
        vae = build()
        vae.decoder.mid_block = Skip()
        if swapped:
            swap(vae)
        with torch.no_grad():
            found.append(vae.decoder(latents)[0])
    assert torch.allclose(*found, atol=1e-4)


def test_a_gradient_that_comes_with_the_cache(build):
    vae = build()
    latents = torch.randn(1, 16, 3, 4, 6, requires_grad=True)
    with swap(vae):
        _, cache = vae.decoder(latents)
        vae.decoder(torch.randn(1, 16, 2, 4, 6), conv_cache=cache)[0].sum().backward()
    assert latents.grad is not None and latents.grad.abs().max() > 0


def test_an_empty_batch_and_a_short_cache(build):
    vae = build()
    latents = torch.randn(1, 16, 3, 4, 6)
    with torch.no_grad():
        expected = vae.decoder(latents)[0]
        with swap(vae):
            got, cache = vae.decoder(latents)
            assert torch.allclose(got, expected, atol=1e-4)
            cache["conv_in"] = cache["conv_in"][:, :, :1]
            vae.decoder(latents, conv_cache=cache)


def test_activations_far_from_zero_lose_no_digits(build):
    """In channels last the framework's norm would: a norm that runs through it takes a copy."""
    vae = build()
    with torch.no_grad():
        vae.encoder.conv_in.conv.bias.fill_(3.0)
        vae.encoder.conv_in.conv.weight.mul_(0.1)
    other = build()
    other.load_state_dict(vae.state_dict())
    swap(other)
    assert_parity(vae, other, clip_of(9))
