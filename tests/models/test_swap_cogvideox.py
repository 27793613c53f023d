"""`swap(vae)` on `AutoencoderKLCogVideoX`: what must go on working, each with its numbers compared."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from itertools import product

import pytest
import torch

from causalvae_kernels import InvalidInput, restore, swap, use_backend, use_precision
from causalvae_kernels.models.swap import run
from tests.support.copies import CountedElements
from tests.support.cover import pairs, quick, quick_rows
from tests.support.models import assert_parity, clip_of, replaced_names, round_trip
from tests.support.seeds import seeded

ALL_TYPES = {
    "CogVideoXCausalConv3d",
    "CogVideoXSpatialNorm3D",
    "CogVideoXUpsample3D",
    "CogVideoXDownsample3D",
    "CogVideoXEncoder3D",
    "CogVideoXDecoder3D",
}


@pytest.mark.parametrize("frames", quick([1, 2, 5, 8, 9, 13, 16, 17], [1, 2, 9, 16]))
def test_parity_for_the_frame_counts_that_diffusers_accepts(frames, config_name, build):
    vae = build(config_name)
    other = build(config_name)
    swap(other)
    assert_parity(vae, other, clip_of(frames))


@pytest.mark.parametrize(
    ("low", "config_name"),
    quick_rows(
        list(product([torch.bfloat16, torch.float16], ["small", "odd"])),
        [(torch.float16, "small"), (torch.bfloat16, "odd")],
    ),
)
def test_parity_in_half_precision(low, config_name, build):
    vae, other = build(config_name, low), build(config_name)
    swap(other)
    other.to(low)  # cast after the swap
    assert_parity(vae, other, clip_of(9, dtype=low))


def test_half_and_to_after_the_swap(build):
    vae = build()
    swap(vae)
    clip = clip_of(9)
    before = round_trip(vae, clip)[1]
    vae.half()
    half = round_trip(vae, clip.half())[1]
    vae.float()
    after = round_trip(vae, clip)[1]
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), before, atol=0.1)
    assert torch.allclose(after, before, atol=0.1)
    expected = build().half().float()
    assert torch.allclose(after, round_trip(expected, clip)[1], atol=1e-4)


# In this order "small" in bfloat16, for which the framework takes seconds, comes with one frame.
@pairs(low=[torch.float32, torch.bfloat16], config_name=["odd", "small"], frames=[1, 8, 9, 13])
def test_exact_tier_gives_the_same_bits(frames, low, config_name, build):
    vae = build(config_name, low)
    clip = clip_of(frames, dtype=low)
    expected = round_trip(vae, clip)
    with swap(vae, precision="exact"):
        got = round_trip(vae, clip)
    with swap(vae), use_precision("exact"):
        again = round_trip(vae, clip)
    for a, b, c in zip(expected, got, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_parity_on_the_native_backend(config_name, build, backend):
    vae, other = build(config_name), build(config_name)
    swap(other, backend=backend)
    assert_parity(vae, other, clip_of(9))
    restore(other)
    with swap(other), use_backend(backend):
        assert_parity(vae, other, clip_of(9))


def test_everything_is_covered(build):
    handle = swap(build())
    kinds = {entry.type_name for entry in handle.report if entry.replaced}
    assert kinds == ALL_TYPES
    left = {entry.type_name for entry in handle.report if not entry.replaced}
    assert left == {"GroupNorm", "CogVideoXSafeConv3d"}
    assert all(entry.reason for entry in handle.report)
    assert "modules replaced" in handle.summary() and "conv_shortcut" in str(handle)


def test_restore_leaves_no_trace(build):
    vae = build()
    clip, before = clip_of(9), {name: set(m.__dict__) for name, m in vae.named_modules()}
    state = {k: v.clone() for k, v in vae.state_dict().items()}
    expected = round_trip(vae, clip)
    handle = swap(vae)
    assert vae.state_dict().keys() == state.keys()
    swapped = round_trip(vae, clip)
    assert not torch.equal(swapped[1], expected[1]), "the swap does nothing"
    handle.restore()
    handle.restore()
    assert {name: set(m.__dict__) for name, m in vae.named_modules()} == before
    assert all(torch.equal(v, state[k]) for k, v in vae.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(round_trip(vae, clip), expected, strict=True))
    with pytest.raises(InvalidInput, match="call swap\\(\\) again"):
        handle.refresh()


def test_with_restores_after_an_error(build):
    vae = build()
    with pytest.raises(InvalidInput, match="channels"), swap(vae):
        vae.decode(torch.zeros(1, 3, 1, 2, 2))
    assert not any("forward" in m.__dict__ for m in vae.modules())


def test_swapping_twice_replaces_the_first_swap(build):
    vae = build()
    first = swap(vae, backend="reference", frames="any", memory="low")
    with pytest.warns(UserWarning, match="swapped with backend='reference', frames='any'; the new swap"):
        second = swap(vae, memory="low")
    assert not first.active and second.active
    first.restore()
    assert replaced_names(second)
    assert not replaced_names(first)
    second.restore()


def test_swapping_twice_is_silent_where_nothing_is_dropped(build):
    vae = build()
    handle = swap(vae, backend="aten", precision="exact", frames="any")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = swap(vae, backend="reference", precision="exact", frames="any", memory="low")
        handle.restore()
        again.restore()
        swap(vae)  # what was taken out drops nothing


def test_the_summary_counts_what_might_be_replaced_and_was(build):
    vae = build()
    handle = swap(vae)
    count = len(replaced_names(handle))
    assert handle.summary() == f"AutoencoderKLCogVideoX: {count} modules replaced"
    hook = vae.decoder.register_forward_hook(lambda *_: None)
    assert handle.summary() == f"AutoencoderKLCogVideoX: {count - 1} modules replaced, 1 left (decoder)"
    hook.remove()
    handle.restore()
    taken_out = f"AutoencoderKLCogVideoX: the swap was restored; {count} modules had been replaced"
    assert handle.summary() == taken_out
    with swap(vae) as handle:
        restore(vae)  # by somebody without the handle
        assert handle.summary() == taken_out


def test_classes_and_globals_are_untouched(build):
    vae = build()
    forwards = {type(m): type(m).forward for m in vae.modules()}
    swap(vae)
    other = build()
    assert all(cls.forward is forward for cls, forward in forwards.items())
    assert not any("forward" in m.__dict__ for m in other.modules())


@pytest.mark.parametrize("frames", quick([9, 16], [9]))
def test_tiling(frames, build):
    def tile(vae):
        vae.enable_tiling(tile_sample_min_height=32, tile_sample_min_width=32)

    vae, other = build(), build()
    tile(vae)
    swap(other)
    tile(other)
    assert_parity(vae, other, clip_of(frames, 48, 40), tile)
    untiled = build()
    assert not torch.equal(round_trip(vae, clip_of(9, 48, 40))[1], round_trip(untiled, clip_of(9, 48, 40))[1])


def test_slicing(build):
    vae, other = build(), build()
    swap(other)
    clip = clip_of(9, batch=3)
    together = round_trip(other, clip)[1]
    vae.enable_slicing()
    other.enable_slicing()
    assert_parity(vae, other, clip, lambda m: m.enable_slicing())
    assert torch.allclose(round_trip(other, clip)[1], together, atol=1e-4)


def test_return_dict_false_and_sampling(build):
    vae = build()
    clip = clip_of(9)
    with torch.no_grad(), swap(vae):
        (posterior,) = vae.encode(clip, return_dict=False)
        sample = posterior.sample(torch.Generator().manual_seed(0))
        (frames,) = vae.decode(sample, return_dict=False)
        whole = vae(clip, sample_posterior=True, generator=torch.Generator().manual_seed(0)).sample
    assert torch.allclose(frames, whole, atol=1e-4)


def _gradients(vae, clip, checkpointing):
    vae.train().requires_grad_(True)
    if checkpointing:
        vae.enable_gradient_checkpointing()
    vae.zero_grad()
    clip = clip.clone().requires_grad_()
    out = vae(clip).sample
    (out.square().mean() + out.mean()).backward()
    return out.detach(), clip.grad, {k: p.grad for k, p in vae.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode_and_gradients(checkpointing, build):
    clip = clip_of(9)
    expected = _gradients(build(), clip, False)
    vae = build()
    swap(vae)
    out, clip_grad, grads = _gradients(vae, clip, checkpointing)
    assert torch.allclose(out, expected[0], atol=1e-4)
    assert torch.allclose(clip_grad, expected[1], rtol=1e-3, atol=1e-6)
    for name, grad in grads.items():
        assert grad is not None, name
        assert torch.allclose(grad, expected[2][name], rtol=1e-2, atol=1e-5), name


def test_gradients_and_inference_agree(build):
    """The buffers of inference and the functional path of training compute the same."""
    vae = build()
    clip = clip_of(9)
    with swap(vae):
        inference = round_trip(vae, clip)[1]
        vae.requires_grad_(True)
        training = vae(clip).sample.detach()
    assert torch.allclose(inference, training, atol=2e-5)


def test_dropout_in_training_mode(build):
    vae = build().train()
    for module in vae.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    block, x = vae.encoder.down_blocks[0].resnets[0], torch.randn(1, 16, 2, 4, 4)
    torch.manual_seed(3)
    expected = block(x)[0]
    with swap(vae):
        torch.manual_seed(3)
        got = block(x)[0]
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(got, block.eval()(x)[0], atol=1e-2)


def test_dropout_switched_on_alone(build):
    """Monte-Carlo dropout: the model evaluates, its dropout layers train."""
    vae = build()
    for module in vae.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
            module.train()
    clip = clip_of(5)
    torch.manual_seed(3)
    expected = round_trip(vae, clip)[1]
    with swap(vae):
        torch.manual_seed(3)
        got = round_trip(vae, clip)[1]
    assert torch.allclose(got, expected, atol=1e-4)


def _circular(conv):
    conv.padding_mode = "circular"
    conv._reversed_padding_repeated_twice = (1, 1, 1, 1, 0, 0)


def _dilated(conv):
    conv.dilation, conv.padding = (1, 2, 2), (0, 2, 2)


def _unpadded(conv):
    conv.padding = (0, 0, 0)


@pytest.mark.parametrize("change", [_circular, _dilated, _unpadded])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_configuration_changed_by_hand(change, when, build):
    vae = build()
    conv, x = vae.decoder.conv_in, torch.randn(1, 16, 3, 6, 6)
    handle = swap(vae) if when == "after" else None
    change(conv.conv)
    handle = handle or swap(vae)
    with torch.no_grad():
        expected = type(conv).forward(conv, x)[0]
        assert torch.equal(conv(x)[0], expected)
    entry = next(e for e in handle.report if e.name == "decoder.conv_in")
    assert not entry.replaced and entry.reason


def test_caches_and_batches_that_only_diffusers_takes(build):
    vae = build()
    conv, block = vae.decoder.conv_in, vae.encoder.down_blocks[0].resnets[0]
    x, h = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)
    calls = [
        lambda: conv(x, torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0)))[0],
        lambda: conv(x, torch.ones(1, 16, 2, 4, 4, dtype=torch.bfloat16))[0],
        lambda: conv(x[:0])[0],
        lambda: block(h[:0])[0],
    ]
    with torch.no_grad():
        expected = [call() for call in calls]
        with swap(vae):
            got = [call() for call in calls]
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def test_a_cache_that_requires_a_gradient(build):
    vae = build()
    block, h = vae.encoder.down_blocks[0].resnets[0], torch.randn(1, 16, 3, 4, 4)
    gradients = []
    for active in (False, True):
        handle = swap(vae) if active else None
        cache = torch.ones(1, 16, 2, 4, 4, requires_grad=True)
        block(h, conv_cache={"conv1": cache})[0].sum().backward()
        gradients.append(cache.grad)
        if handle:
            handle.restore()
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_functional_transforms(build):
    vae = build()
    z = torch.randn(2, 1, 16, 1, 2, 2)
    direction = torch.ones_like(z[0])

    def decode(latents):
        return vae.decode(latents).sample

    expected = torch.func.vmap(decode)(z), torch.func.jvp(decode, (z[0],), (direction,))[1]
    with swap(vae):
        got = torch.func.vmap(decode)(z), torch.func.jvp(decode, (z[0],), (direction,))[1]
        gradient = torch.func.grad(lambda latents: decode(latents).sum())(z[0])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected, strict=True))
    assert gradient.abs().sum() > 0


def test_a_mixed_precision_norm(build):
    """float32 convolutions in the spatial norm of a bfloat16 model: the result is float32."""
    norm = build(dtype=torch.bfloat16).decoder.norm_out
    vae = build(dtype=torch.bfloat16)
    for model in (norm, vae.decoder.norm_out):
        model.conv_y.float()
        model.conv_b.float()
    f, zq = torch.randn(1, 16, 1, 8, 8).bfloat16(), torch.randn(1, 16, 1, 2, 2)
    with torch.no_grad(), swap(vae):
        expected, got = norm(f, zq)[0], vae.decoder.norm_out(f, zq)[0]
    assert got.dtype == expected.dtype == torch.float32
    assert torch.allclose(got, expected, atol=1e-4)


def test_weights_of_another_tensor_type(build):
    class Halved(torch.Tensor):
        """Computes with half its value, by its own dispatch rule."""

        @staticmethod
        def __new__(cls, data):
            return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=data.dtype)

        def __init__(self, data):
            self.data_ = data

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            if func.namespace != "aten":
                raise NotImplementedError(str(func))
            if func is torch.ops.aten.detach.default:
                return cls(args[0].data_)
            plain = [a.data_ * 0.5 if isinstance(a, Halved) else a for a in args]
            return func(*plain, **(kwargs or {}))

    vae = build()
    conv, x = vae.decoder.conv_in, torch.randn(1, 16, 3, 4, 4)
    conv.conv.weight = torch.nn.Parameter(Halved(conv.conv.weight.detach()), requires_grad=False)
    with torch.no_grad():
        expected = conv(x)[0]
        with swap(vae) as handle:
            assert torch.allclose(conv(x)[0], expected, atol=1e-5)
            entry = next(e for e in handle.report if e.name == "decoder.conv_in")
    assert "weight is a Halved" in entry.reason or "Parameter" in entry.reason


def test_save_and_load(build, tmp_path):
    vae = build()
    expected = round_trip(vae, clip_of(9))
    with swap(vae):
        vae.save_pretrained(tmp_path / "swapped")
    loaded = type(vae).from_pretrained(tmp_path / "swapped").eval()
    assert all(torch.equal(a, b) for a, b in zip(round_trip(loaded, clip_of(9)), expected, strict=True))
    swap(loaded)
    assert_parity(vae, loaded, clip_of(9))


def test_load_state_dict_into_a_swapped_model(build):
    vae, other = build(), build()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(1.1)
    swap(other)
    round_trip(other, clip_of(5))
    other.load_state_dict(vae.state_dict())
    assert_parity(vae, other, clip_of(9))


def test_deep_copies_use_their_own_weights(build):
    vae = build()
    handle = swap(vae)
    twin = copy.deepcopy(vae)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.1)
    fresh = build()
    fresh.load_state_dict(twin.state_dict())
    assert all(m.forward.args[0] is m for m in twin.modules() if "forward" in m.__dict__)
    assert_parity(fresh, twin, clip_of(9))
    assert_parity(build(), vae, clip_of(9))
    handle.restore()
    assert any("forward" in m.__dict__ for m in twin.modules()), "the copy has a life of its own"
    restore(twin)
    assert not any("forward" in m.__dict__ for m in twin.modules())


def test_pickle(build):
    vae = build()
    swap(vae)
    twin = pickle.loads(pickle.dumps(vae))
    assert torch.equal(round_trip(twin, clip_of(5))[1], round_trip(vae, clip_of(5))[1])
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(round_trip(again, clip_of(5))[1], round_trip(vae, clip_of(5))[1])


def test_channels_last_model(build):
    vae, other = build(), build()
    for parameter in (*vae.parameters(), *other.parameters()):
        if parameter.dim() == 5:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
    swap(other)
    assert_parity(vae, other, clip_of(9).contiguous(memory_format=torch.channels_last_3d))


def _videos_own_layout(clip):
    """The strides of a (T, H, W, 3) video that was permuted: channels inside, the batch stride odd."""
    return clip[0].permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2).unsqueeze(0)


@pytest.mark.parametrize("size", quick([(16, 24), (64, 72)], [(16, 24)]), ids=str)
@pairs(layout=["channels_last_3d", "video", "sliced"], tier=["exact", "high"])
def test_clips_in_other_layouts(layout, tier, size, build):
    vae = build()
    clip = clip_of(9, *size)
    if layout == "video":
        clip = _videos_own_layout(clip)
    elif layout == "sliced":
        clip = clip.repeat_interleave(2, dim=4)[..., ::2]
    else:
        clip = clip.contiguous(memory_format=torch.channels_last_3d)
    if tier == "exact":
        clip = torch.cat([clip, clip.flip(4)]) if size == (16, 24) else clip
        expected = round_trip(vae, clip)
        with swap(vae, precision=tier):
            got = round_trip(vae, clip)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        return
    other = build()
    swap(other)
    assert_parity(vae, other, clip)


@torch.no_grad()
def test_a_kernel_of_two_frames(build):
    """Causal in time, it need not be odd there."""
    vae = build()
    conv = type(vae.decoder.conv_in)(16, 8, kernel_size=(2, 3, 3)).requires_grad_(False)
    vae.decoder.conv_in = conv
    chunks = torch.randn(1, 16, 5, 4, 6).split([2, 3], dim=2)

    def run():
        first, cache = conv(chunks[0])
        second, cache = conv(chunks[1], cache)
        return torch.cat([first, second], dim=2), cache

    expected = run()
    with swap(vae, backend="aten") as handle:
        assert "decoder.conv_in" in replaced_names(handle)
        for got, like in zip(run(), expected, strict=True):
            assert torch.allclose(got, like, atol=1e-5)


def test_autocast(build):
    vae = build()
    clip = clip_of(9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = round_trip(vae, clip)
        with swap(vae):
            got = round_trip(vae, clip)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() / b.norm() < 0.1


def test_stale_weights(build):
    """EMA copies, `data.copy_` and casts between calls are seen by the next one."""
    vae, other = build(), build()
    swap(other)
    clip = clip_of(5)
    round_trip(other, clip)
    for model in (vae, other):
        for i, p in enumerate(model.parameters()):
            p.data.lerp_(torch.full_like(p, 0.01 * (i % 3)), 0.1)  # an EMA step
    assert_parity(vae, other, clip)
    for model in (vae, other):
        for p in model.parameters():
            p.data.copy_(p.data.flip(0))
    assert_parity(vae, other, clip)
    for model in (vae, other):
        model.to(torch.bfloat16)
    assert_parity(vae, other, clip.bfloat16())


def test_conv_cache_keeps_its_meaning(build):
    """Code outside that drives encoder and decoder chunk by chunk, as diffusers does, gets the same."""
    vae, other = build(), build()
    swap(other)
    z = torch.randn(1, 16, 5, 4, 6)
    with torch.no_grad():
        caches = {}
        for name, model in (("reference", vae), ("swapped", other)):
            first, cache = model.decoder(z[:, :, :3])
            second, cache = model.decoder(z[:, :, 3:], conv_cache=cache)
            caches[name] = (torch.cat([first, second], dim=2), cache)
        # A cache made by one is understood by the other.
        _, cache = vae.decoder(z[:, :, :3])
        crossed, _ = other.decoder(z[:, :, 3:], conv_cache=cache)
        _, cache = other.decoder(z[:, :, :3])
        back, _ = vae.decoder(z[:, :, 3:], conv_cache=cache)
    expected, got = caches["reference"], caches["swapped"]
    assert torch.allclose(got[0], expected[0], atol=1e-4)
    assert torch.allclose(crossed, expected[0][:, :, -8:], atol=1e-4)
    assert torch.allclose(back, expected[0][:, :, -8:], atol=1e-4)
    paths = dict(_leaves(got[1]))
    compared = 0
    for path, value in _leaves(expected[1]):
        if path.endswith(("conv_y", "conv_b")):
            assert paths.get(path) is None, "a kernel of one frame needs no cache"
            continue
        assert torch.allclose(paths[path], value, atol=1e-4), path
        compared += 1
    assert compared > 10


def _leaves(cache, prefix=""):
    for key, value in cache.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_an_exception_leaks_no_state(build):
    vae = build()
    with swap(vae):
        expected = round_trip(vae, clip_of(9))[1]
        with pytest.raises(InvalidInput, match="one dtype"):
            vae.decode(torch.zeros(1, 16, 3, 4, 6, dtype=torch.float64))
        assert torch.equal(round_trip(vae, clip_of(9))[1], expected)


def test_copies_vanish(build):
    """What cat, pad, clone and copies write, in the model and inside the ops."""
    vae = build()
    latents = torch.randn(1, 16, 3, 4, 6)
    counts = []
    for active in (False, True):
        handle = swap(vae) if active else None
        with torch.no_grad(), CountedElements() as counted:
            vae.decode(latents)
        counts.append(counted.elements)
        if handle:
            handle.restore()
    assert counts[1] < 0.35 * counts[0], counts


@pytest.mark.exhaustive
def test_compiled_decoder(build):
    vae = build()
    swap(vae)
    latents = torch.randn(1, 16, 3, 2, 3)
    with torch.no_grad():
        expected = vae.decoder(latents)[0]
        compiled = torch.compile(vae.decoder, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(latents)[0], expected, atol=1e-4)
        with use_precision("exact"):
            exact = vae.decoder(latents)[0]
            assert torch.equal(compiled(latents)[0], exact)
        assert not torch.equal(exact, expected)


def test_inside_a_pipeline(build):
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=16, out_channels=16, time_embed_dim=4,
        text_embed_dim=8, num_layers=1, sample_width=4, sample_height=4, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=4,
    )  # fmt: skip
    text = T5EncoderModel(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))

    def generate(vae):
        pipeline = CogVideoXPipeline(None, text, vae, transformer, CogVideoXDDIMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        embeds = torch.ones(1, 4, 8)
        return pipeline(
            prompt_embeds=embeds, negative_prompt_embeds=embeds, height=32, width=32, num_frames=9,
            num_inference_steps=1, max_sequence_length=4, output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).frames  # fmt: skip

    vae = build()
    expected = generate(vae)
    with swap(vae):
        got = generate(vae)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"conv_shortcut": True}, {"pad_mode": "replicate"}, {"non_linearity": "gelu"}], ids=str
)
def test_use_conv_shortcut_and_replicate_pad_mode(options, build):
    """Configurations of the blocks that the shipped VAE does not use."""
    from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXResnetBlock3D

    vae, other = build(), build()
    for model in (vae, other):
        blocks = next(b.resnets for b in model.encoder.down_blocks if hasattr(b.resnets[0], "conv_shortcut"))
        old = blocks[0]
        with seeded(3):
            blocks[0] = CogVideoXResnetBlock3D(
                in_channels=old.in_channels,
                out_channels=old.out_channels,
                groups=old.norm1.num_groups,
                temb_channels=0,
                **options,
            ).eval()
    swap(other)
    assert_parity(vae, other, clip_of(9))
    assert_parity(vae, other, clip_of(16))


def test_a_convolution_that_no_rule_fits_is_left(build):
    from diffusers.models.autoencoders import autoencoder_kl_cogvideox as cog

    vae = build()
    vae.odd = cog.CogVideoXCausalConv3d(4, 4, kernel_size=3, dilation=2)
    vae.strided = cog.CogVideoXCausalConv3d(4, 4, kernel_size=3, stride=2)
    x = torch.randn(1, 4, 5, 6, 6)
    with torch.no_grad():
        expected = vae.odd(x)[0], vae.strided(x)[0]
        handle = swap(vae)
        got = vae.odd(x)[0], vae.strided(x)[0]
    reasons = {e.name: e for e in handle.report}
    assert not reasons["odd"].replaced and "dilation" in reasons["odd"].reason
    assert reasons["strided"].replaced
    assert torch.equal(got[0], expected[0])
    assert torch.allclose(got[1], expected[1], atol=1e-5)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        (torch.nn.Linear(1, 1), "got a Linear, expected one of: AutoencoderKLCogVideoX"),
        ("vae", "expected a VAE, or a pipeline that has one"),
        (torch.compile(torch.nn.Linear(1, 1)), "swap the model first, then compile it"),
    ],
)
def test_what_cannot_be_swapped(argument, words):
    with pytest.raises(InvalidInput, match=words):
        swap(argument)


def test_wrong_words(build):
    with pytest.raises(InvalidInput, match="expected one of 'auto'"):
        swap(build(), backend="metal")
    with pytest.raises(InvalidInput, match="expected one of 'exact'"):
        swap(build(), precision="low")


def test_replacements_are_partials_of_an_importable_function(build):
    vae = build()
    swap(vae)
    forwards = [m.__dict__["forward"] for m in vae.modules() if "forward" in m.__dict__]
    assert len(forwards) > 100
    assert all(f.func is run for f in forwards)
