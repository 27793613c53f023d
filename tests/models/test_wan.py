"""Wan, Wan 2.2 and Qwen-Image: what they have beyond the contract of all families."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as wan

from causalvae_kernels import swap
from causalvae_kernels.core import native
from causalvae_kernels.core.layout import is_channels_last_3d
from causalvae_kernels.models import conv, plan_memory, scheduled, wan_shortcuts
from causalvae_kernels.models.swap import Link
from tests.support.copies import CountedElements
from tests.support.cover import pairs, quick
from tests.support.models import assert_parity, round_trip
from tests.support.wan_models import CONFIGS, VIDEO, build, chunks_of, held, places, run

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
NATIVE = pytest.mark.skipif(native.why_no_cpu() is not None, reason="no native CPU module")
CODERS = ("encoder", "decoder")


def near(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return got.shape == expected.shape and bool((got - expected).abs().max() <= 2e-5 * expected.abs().max())


@pairs(name=CONFIGS, dtype=[torch.float32, torch.bfloat16], backend=BACKENDS)
def test_parity_with_odd_channels(name, dtype, backend):
    vae, other = build(name, dtype), build(name, dtype)
    swap(other, backend=backend)
    channels, frames = (4, 1) if name == "qwen 2.1" else (3, 9)
    generator = torch.Generator().manual_seed(1)
    clip = torch.rand(1, channels, frames, 16, 48, generator=generator).to(dtype) * 2 - 1
    assert_parity(vae, other, clip)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cached", [None, 1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1, 1), "padding": (1, 0, 0)},
        {"kernel_size": (3, 1, 1), "stride": (2, 1, 1)},
        {"kernel_size": 1},
    ],
    ids=str,
)
def test_the_convolution_behind_caches_of_any_length(options, frames, cached, backend):
    module = wan.WanCausalConv3d(6, 9, **options).eval().requires_grad_(False)
    x = torch.randn(2, 6, frames, 5, 1)
    past = None if cached is None else torch.randn(2, 6, cached, 5, 1)
    ours, _ = held(module, backend=backend)
    try:
        expected = module(x, past)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ours(x, past)
    else:
        assert near(ours(x, past), expected)


def test_an_unbatched_clip_an_empty_batch_and_a_cache_of_another_dtype():
    module = wan.WanCausalConv3d(4, 4, 3, padding=1).eval().requires_grad_(False)
    ours, _ = held(module)
    x, past = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 4, 2, 4, 4).bfloat16()
    for arguments in ((x[0],), (x[:0],), (x, past)):
        assert torch.equal(ours(*arguments), module(*arguments))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", VIDEO)
def test_the_feature_cache_keeps_its_meaning(name, coder, backend):
    """The same frames in the same places, perhaps behind zeros; a cache of one is understood by the other."""
    vae, other = getattr(build(name), coder), build(name)
    swap(other, backend=backend)
    other = getattr(other, coder)
    caches = places(vae), places(vae)
    crossed = places(vae), places(vae)
    for i, chunk in enumerate(chunks_of(name, coder, batch=2)):
        expected = run(vae, chunk, caches[0], not i)
        assert near(run(other, chunk, caches[1], not i), expected)
        for one, two in zip(*caches, strict=True):
            assert (one is None) == (two is None)
            if isinstance(one, torch.Tensor):
                before = two.shape[2] - one.shape[2]
                assert near(two[:, :, before:], one) and not two[:, :, :before].any()
            elif one is not None:
                assert one == "Rep" and not two.any(), "nothing was there before the second chunk"
        for turn, cache in enumerate(crossed):
            assert near(run((vae, other)[(i + turn) % 2], chunk, cache, not i), expected)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", VIDEO)
def test_modules_alone(name, coder):
    """Each module that is replaced, in a model whose coder runs as diffusers wrote it."""
    vae, other = build(name), build(name)
    swap(other)
    for module in (getattr(vae, coder), getattr(other, coder)):
        module.register_forward_hook(lambda *_: None)
    vae, other = getattr(vae, coder), getattr(other, coder)
    caches = places(vae), places(vae)
    for i, chunk in enumerate(chunks_of(name, coder)):
        assert near(run(other, chunk, caches[1], not i), run(vae, chunk, caches[0], not i))


@pytest.mark.parametrize("name", ["2.1", "qwen"])
def test_without_a_feature_cache(name):
    """All frames at once: nothing is resampled in time."""
    vae, other = build(name), build(name)
    swap(other)
    z = torch.randn(1, 5, 3, 3, 2)
    assert near(other.decoder(z), vae.decoder(z))
    assert near(other.encoder(vae.decoder(z)), vae.encoder(vae.decoder(z)))


@pairs(
    widths=[(4, 4), (8, 4), (4, 8), (6, 3), (24, 12), (12, 36)],
    factors=[(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)],
    frames=[1, 3],
    first_chunk=[False, True],
)
def test_the_shortcuts(widths, factors, frames, first_chunk):
    narrow, wide = widths
    time, space = factors
    if narrow * time * space**2 % wide == 0:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x = torch.randn(2, narrow, frames, 2 * space, 3 * space).contiguous(memory_format=layout)
            down = wan.AvgDown3D(narrow, wide, time, space)
            shortcut, sizes = wan_shortcuts.averaged(down, x)
            assert torch.allclose(shortcut.flatten(1, 4), down(x), atol=1e-6)
            assert len(sizes) == 4
    if wide * time * space**2 % narrow == 0:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            x = torch.randn(2, narrow, frames, 2, 3).contiguous(memory_format=layout)
            up = wan.DupUp3D(narrow, wide, time, space)
            expected = up(x, first_chunk)
            y = torch.randn(expected.shape).contiguous(memory_format=layout)
            total = y + expected
            done = wan_shortcuts.add_repeated(y, up, x, first_chunk)
            assert (
                torch.equal(y, total)
                if done
                else wan_shortcuts._sizes((wide, time, space, space), up.repeats) is None
            )


def test_wan22_s_own_shortcuts_copy_nothing():
    for narrow, wide, time, space in ((160, 160, 1, 2), (160, 320, 2, 2), (320, 640, 2, 2), (640, 640, 1, 1)):
        group = wan.AvgDown3D(narrow, wide, time, space).group_size
        assert wan_shortcuts._sizes((narrow, time, space, space), group) is not None
    for narrow, wide, time in ((1024, 1024, 2), (1024, 512, 1)):
        repeats = wan.DupUp3D(narrow, wide, time, 2).repeats
        assert wan_shortcuts._sizes((wide, time, 2, 2), repeats) is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", VIDEO)
def test_what_the_caller_holds_is_not_overwritten(name, coder, dtype, backend):
    vae = build(name, dtype)
    swap(vae, backend=backend)
    module, kept = getattr(vae, coder), []
    cache = places(module)
    for i, chunk in enumerate(chunks_of(name, coder, dtype)):
        chunk = chunk.contiguous(memory_format=torch.channels_last_3d)
        out = run(module, chunk, cache, not i)
        kept += [(t, t.clone()) for t in (chunk, out, *scheduled.tensors_in(cache))]
        assert all(torch.equal(a, b) for a, b in kept)


PROBED = [
    "conv_in", "mid_block", "mid_block.attentions.0", "mid_block.attentions.0.norm", "mid_block.resnets.0",
    "mid_block.resnets.1.norm1", "up_blocks.0", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1.conv2",
    "up_blocks.2.resnets.0.conv_shortcut", "norm_out", "nonlinearity",
]  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [(("2.1", "2.2")[i % 2], path) for i, path in enumerate(PROBED)])
def test_what_a_hook_keeps_is_not_overwritten(name, path):
    """A probe on any module sees what the unmodified model gives there, also after the run."""
    seen, chunks = [], chunks_of(name, "decoder")

    def keep(module, arguments, output):
        seen[-1] += [arguments[0], output]

    for swapped in (False, True):
        seen.append([])
        vae = build(name)
        if swapped:
            swap(vae, backend=BACKENDS[-1])
        vae.decoder.get_submodule(path).register_forward_hook(keep)
        cache = places(vae.decoder)
        for i, chunk in enumerate(chunks):
            run(vae.decoder, chunk, cache, not i)
    assert seen[0]
    for expected, got in zip(*seen, strict=True):
        assert near(got, expected)


@pytest.mark.parametrize("name", ["2.1", "2.2"])
def test_the_samplers_may_be_hooked(name):
    chunks, found = chunks_of(name, "decoder"), []
    for swapped in (False, True):
        vae = build(name)
        if swapped:
            swap(vae, backend=BACKENDS[-1])
        kept = []
        found.append(kept)
        for module in vae.decoder.modules():
            if isinstance(module, (wan.WanResample, wan.WanUpsample, wan.DupUp3D)):
                module.register_forward_hook(lambda _, given, out, kept=kept: kept.append(out))
        cache = places(vae.decoder)
        kept += [run(vae.decoder, chunk, cache, not i) for i, chunk in enumerate(chunks)]
    assert all(near(b, a) for a, b in zip(*found, strict=True))


def test_a_foreign_block_and_a_foreign_attention_run_as_they_are():
    class Skip(torch.nn.Module):
        def forward(self, x, feat_cache=None, feat_idx=None, first_chunk=None):
            return x

    found, z = [], torch.randn(1, 5, 1, 3, 2)
    for swapped in (False, True):
        vae = build("2.1")
        vae.decoder.mid_block.attentions[0] = Skip()
        vae.decoder.up_blocks[3].resnets[1] = Skip()
        if swapped:
            swap(vae)
        found.append(run(vae.decoder, z, places(vae.decoder), True))
    assert near(found[1], found[0])


@NATIVE
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("name", VIDEO)
def test_what_is_copied(name, coder):
    """The last frames, the layout at both ends, what attention copies; no more."""
    vae = build(name)
    swap(vae, backend="cpu")
    module, chunks = getattr(vae, coder), chunks_of(name, coder)
    cache, seen = places(module), []
    module.mid_block.attentions[0].to_qkv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for i in (0, 1):
        run(module, chunks[i], cache, not i)
    with CountedElements() as counted:
        out = run(module, chunks[2], cache, False)
    state = sum(t.numel() for t in scheduled.tensors_in(cache))
    # A convolution over pairs of frames is given the one before and the first of its own as a state.
    pairs = sum(2 * t.numel() for t in scheduled.tensors_in(cache) if t.shape[2] == 1)
    x = torch.randn_like(seen[-1]).unsqueeze(2)
    with CountedElements() as inside:
        getattr(build(name), coder).mid_block.attentions[0](x)
    attention = inside.elements + x.numel()  # its output may be laid out in another way
    assert counted.elements <= state + pairs + chunks[2].numel() + out.numel() + attention


@NATIVE
def test_activations_stay_channels_last():
    """Between the first and the last convolution nothing is laid out anew."""
    seen = []
    for name in VIDEO:
        vae = build(name)
        handle = swap(vae, backend="cpu")
        for coder in CODERS:
            module = getattr(vae, coder)
            cache = places(module)
            for i, chunk in enumerate(chunks_of(name, coder)):
                run(module, chunk, cache, not i)
        for known in handle._link.coders.known.values():
            for _, runs in known.schedule._ready.values():
                seen += [r._tensors[0] for r in runs if hasattr(r, "_tensors") and r._tensors[0] is not None]
    assert len(seen) > 100
    for x in seen:
        alone = x.shape[1] == 1 or x[0, 0].numel() == 1
        assert alone or is_channels_last_3d(x), (x.shape, x.stride())


def test_gradients_that_come_with_the_cache_and_fresh_memory_then():
    grads, chunks = [], chunks_of("2.1", "decoder")[:2]
    for swapped in (False, True):
        vae = build("2.1")
        handle = swap(vae) if swapped else None
        given, cache = chunks[0].clone().requires_grad_(), places(vae.decoder)
        run(vae.decoder, given, cache, True)
        run(vae.decoder, chunks[1], cache, False).square().mean().backward()
        grads.append(given.grad)
    assert not handle._link.coders.idle
    assert torch.allclose(grads[1], grads[0], rtol=1e-3, atol=1e-5 * grads[0].abs().max().item())
    run(vae.decoder, chunks[0], places(vae.decoder), True)
    assert handle._link.coders.idle, "without gradients the arena is used"


def test_dropout_draws_the_same():
    clip, found = torch.rand(1, 3, 5, 16, 16), []
    for swapped in (False, True):
        vae = build("2.1")
        for module in vae.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
                module.train()
        if swapped:
            swap(vae)
        torch.manual_seed(3)
        found.append(round_trip(vae, clip)[1])
    assert near(found[1], found[0])
    assert not near(round_trip(build("2.1"), clip)[1], found[0])


def test_the_factor_of_a_norm_in_another_dtype():
    """The norm ops do not take it for float32; the model multiplies by it all the same."""
    vae, z = build("2.1"), torch.randn(1, 5, 1, 3, 2)
    block = vae.decoder.mid_block.resnets[0]
    block.norm1.to(torch.bfloat16)
    expected = run(vae.decoder, z, places(vae.decoder), True)
    with swap(vae, backend="aten"):
        assert near(run(vae.decoder, z, places(vae.decoder), True), expected)


def test_autocast():
    clip, vae = torch.rand(1, 3, 5, 16, 16), build("2.2")
    clip = clip.repeat_interleave(2, 3).repeat_interleave(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = round_trip(vae, clip)
        with swap(vae):
            got = round_trip(vae, clip)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() / b.norm() < 0.1


def test_an_activation_and_a_dropout_that_no_step_stands_for():
    """A block of another kind on the way: every module runs by itself."""
    chunks = chunks_of("2.1", "decoder")
    for change in (
        lambda block: setattr(block, "nonlinearity", torch.nn.GELU()),
        lambda block: block.dropout.register_forward_hook(lambda *_: None),
    ):
        found = []
        for swapped in (False, True):
            vae = build("2.1")
            change(vae.decoder.up_blocks[1].resnets[0])
            if swapped:
                swap(vae)
            cache = places(vae.decoder)
            found.append([run(vae.decoder, chunk, cache, not i) for i, chunk in enumerate(chunks)])
        assert all(near(b, a) for a, b in zip(*found, strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize("channels", [96, 160])
def test_parity_with_the_real_widths(channels):
    """Wan 2.1's, and those of Wan 2.2's encoder; fewer layers."""
    config = {"base_dim": channels, "num_res_blocks": 1}
    if channels == 160:
        config |= {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12, "z_dim": 48}
        config |= {"dim_mult": [1, 2, 2], "temperal_downsample": [True, True]}
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**config).eval().requires_grad_(False)
    other = copy.deepcopy(vae)
    swap(other)
    assert_parity(vae, other, torch.rand(1, 3, 5, 16, 16) * 2 - 1)


def test_room_is_left_for_a_state_that_lies_elsewhere():
    """The framework needs no room in front of a single first frame, and of one behind others it does."""
    described = conv.Conv(torch.randn(4, 4, 3, 3, 3), temporal_mode="zeros")
    link, x = Link("AutoencoderKLWan", "aten", None), torch.randn(1, 4, 1, 4, 4)
    assert conv.needs_no_room(described, link, x)
    assert not conv.needs_no_room(described, link, x, first=False)


@pytest.mark.parametrize("latents", quick([1, 2], [1]))
def test_the_decoder_compiles_in_one_graph(latents):
    """With the feature cache, which it fills: the second chunk, too, is one graph."""
    config = {"base_dim": 4, "z_dim": 2, "num_res_blocks": 1, "dim_mult": [1, 1], "is_residual": True}
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLWan(**config, temperal_downsample=[True]).eval().requires_grad_(False)
    z = torch.randn(1, 2, latents, 2, 3)
    with swap(vae):
        expected = vae.decode(z).sample
        vae.decoder = torch.compile(vae.decoder, backend="eager", fullgraph=True)
        assert near(vae.decode(z).sample, expected)


@pytest.mark.parametrize("step", ["encode", "decode"])
def test_a_plan_of_frames_that_are_folded_into_patches(step):
    plan = plan_memory(build("2.2"), 5, 32, 32, step=step)
    assert plan.shape == ((1, 3, 5, 32, 32) if step == "encode" else (1, 5, 2, 2, 2)) and plan.untiled > 0
