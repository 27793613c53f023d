"""`swap(vae, frames="any")`: as many frames come out as went in."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.upsampling import CogVideoXUpsample3D

from causalvae_kernels import InvalidInput, restore, swap
from causalvae_kernels.models import frames as frames_module
from tests.support.cover import pairs, quick
from tests.support.models import clip_of

COUNTS = (1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 20, 21, 25, 30, 33)


def latents_of(count, batch=1, channels=16):
    torch.manual_seed(count)
    return torch.randn(batch, channels, count, 2, 3)


def upsample_told(first):
    """Return diffusers' upsampler as it would be if it knew whether its frames are the first ones."""

    def forward(self, inputs):
        pieces = [inputs[:, :, :1], inputs[:, :, 1:]] if first() else [inputs[:, :, :0], inputs]
        if self.compress_time:
            wide = [F.interpolate(pieces[0], scale_factor=(1.0, 2.0, 2.0))] if pieces[0].shape[2] else []
            wide += [F.interpolate(pieces[1], scale_factor=2.0)] if pieces[1].shape[2] else []
        else:
            wide = [F.interpolate(inputs, scale_factor=(1.0, 2.0, 2.0))]
        frames = torch.cat(wide, dim=2).transpose(1, 2)
        return self.conv(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)

    return forward


@torch.no_grad()
def decode_told(vae, z, monkeypatch):
    """Decode with an unmodified model whose upsamplers are told which chunk is the first."""
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    hook = vae.decoder.register_forward_pre_hook(count)
    with monkeypatch.context() as patch:
        patch.setattr(CogVideoXUpsample3D, "forward", upsample_told(lambda: calls == 1))
        out = vae.decode(z).sample
    hook.remove()
    return out


@pairs(count=[1, 2, 3, 4, 6, 7, 8], chunk=[2, 3], tier=["exact", "high"], config_name=["small", "odd"])
def test_the_first_chunk_is_a_fact(count, chunk, tier, config_name, build, monkeypatch):
    """Also with chunks of three latents, where a later chunk of an odd length is no first one."""
    vae = build(config_name)
    vae.num_latent_frames_batch_size = chunk
    z = latents_of(count, channels=vae.config.latent_channels)
    expected = decode_told(copy.deepcopy(vae), z, monkeypatch)
    assert expected.shape[2] == 4 * count - 3
    with swap(vae, frames="any", precision=tier) as handle:
        got = vae.decode(z, num_frames=4 * count - 3).sample
        assert "takes any number of frames" in handle.summary()
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("frames", quick(COUNTS, (1, 2, 3, 8, 9, 10, 16, 17, 33)))
def test_as_many_come_out_as_went_in(frames, build):
    vae, clip = build(), clip_of(frames, batch=2)
    with torch.no_grad(), swap(vae, frames="any"):
        whole = vae(clip).sample
        output = vae.encode(clip)
        mode = output.latent_dist.mode()
        steps = vae.decode(mode, num_frames=output.num_frames).sample
        padded = F.pad(clip, (0, 0, 0, 0, 0, -(frames - 1) % 4), mode="replicate")
        again = vae.encode(padded, num_frames=frames)
    assert output.num_frames == output.latent_dist.num_frames == again.num_frames == frames
    assert mode.shape[2] == (frames + 2) // 4 + 1 if frames > 1 else 1
    assert whole.shape == clip.shape
    assert torch.equal(steps, whole)
    assert torch.equal(again.latent_dist.mode(), mode)


@pytest.mark.parametrize("frames", quick([1, 9, 17, 25, 33], [1, 9, 25]))
@pytest.mark.parametrize("tier", ["exact", "high"])
def test_valid_counts_keep_their_bits(frames, tier, build):
    vae, clip = build(), clip_of(frames)
    with torch.no_grad():
        with swap(vae, precision=tier):
            latents = vae.encode(clip).latent_dist.mode()
            expected = vae.decode(latents).sample
        with swap(vae, precision=tier, frames="any"), warnings.catch_warnings():
            warnings.simplefilter("error")
            adapted = vae.encode(clip).latent_dist.mode()
            assert torch.equal(adapted, latents)
            assert torch.equal(vae.decode(adapted).sample, expected)
            assert torch.equal(vae(clip, return_dict=False)[0], expected)


def test_the_end_is_padded_with_copies_of_the_last_frame(build):
    vae = build()
    clip = clip_of(9)
    with torch.no_grad(), swap(vae, frames="any", precision="exact", backend="aten"):
        short = vae.encode(clip[:, :, :7]).latent_dist.mode()
        longer = torch.cat([clip[:, :, :7], clip[:, :, 6:7], clip[:, :, 6:7]], dim=2)
        assert torch.equal(short, vae.encode(longer).latent_dist.mode())


@pytest.mark.parametrize("frames", quick([13, 16], [13]))
def test_tiling_and_slicing(frames, build):
    vae, clip = build(), clip_of(frames, 64, 64, batch=2)
    with torch.no_grad(), swap(vae, frames="any"):
        plain = vae(clip).sample
        vae.enable_slicing()
        sliced = vae(clip).sample
        vae.enable_tiling(tile_sample_min_height=48, tile_sample_min_width=40)
        tiled = vae(clip).sample
    assert torch.allclose(sliced, plain, atol=1e-4)
    assert tiled.shape == clip.shape
    assert not torch.equal(tiled, sliced), "the tiles were not used"


def test_plain_latents_decode_to_what_they_hold_and_it_is_said_once(build):
    vae = build()
    with torch.no_grad(), swap(vae, frames="any"):
        said = r"12 latents decode to 45 .* diffusers gives 48.*num_frames\(n\)"
        with pytest.warns(UserWarning, match=said) as seen:
            assert vae.decode(latents_of(12)).sample.shape[2] == 45
        assert seen[0].filename == __file__, "it points at the caller"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert vae.decode(latents_of(4)).sample.shape[2] == 13
            assert vae.decode(latents_of(5)).sample.shape[2] == 17


def test_the_context_carries_the_count(build):
    vae, other = build(), build()
    z = latents_of(4)
    seen = []
    with torch.no_grad(), swap(vae, frames="any") as handle, swap(other, frames="any"):
        all_frames = vae.decode(z, num_frames=13).sample
        with handle.num_frames(12):
            assert torch.equal(vae.decode(z).sample, all_frames[:, :, :12])
            assert torch.equal(vae.decode(z, num_frames=10).sample, all_frames[:, :, :10])
            assert vae.decode(z, return_dict=False)[0].shape[2] == 12
            assert other.decode(z, num_frames=13).sample.shape[2] == 13
            with handle.num_frames(11):
                assert vae.decode(z).sample.shape[2] == 11
            assert vae(clip_of(10)).sample.shape[2] == 10
            with pytest.warns(UserWarning):
                assert other.decode(z).sample.shape[2] == 13
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                thread = threading.Thread(target=lambda: seen.append(vae.decode(z).sample.shape[2]))
                thread.start()
                thread.join()
            assert seen == [13], "another thread decodes something else"
        with pytest.raises(RuntimeError, match="a pipeline fails"), handle.num_frames(12):
            raise RuntimeError("a pipeline fails")
        assert vae.decode(z).sample.shape[2] == 13


def test_frames_that_only_diffusers_blend_holds(build):
    """A pipeline that is asked for 48 frames makes 12 latents: 45 good frames and the three in front."""
    vae, z = build(), latents_of(4)
    with torch.no_grad():
        with swap(vae):
            shipped = vae.decode(z).sample
        assert shipped.shape[2] == 16
        with swap(vae, frames="any") as handle:
            assert torch.equal(vae.decode(z, num_frames=16).sample, shipped)
            assert torch.equal(vae.decode(z, num_frames=14).sample, shipped[:, :, 2:])
            with handle.num_frames(16):
                assert torch.equal(vae.decode(z).sample, shipped)
            assert vae.decode(z, num_frames=13).sample.shape[2] == 13
            with pytest.raises(InvalidInput, match="num_frames is 17, expected 1 to 16"):
                vae.decode(z, num_frames=17)
            with pytest.raises(InvalidInput, match="num_frames is 0"):
                vae.decode(z, num_frames=0)
            with (
                handle.num_frames(20),
                pytest.warns(UserWarning, match=r"20 frames .* 5 latents hold 17.*6 latents.*num_frames=21"),
            ):
                assert vae.decode(latents_of(5)).sample.shape[2] == 17


def test_bad_input_is_refused_before_any_work(build, monkeypatch):
    vae = build()
    with swap(vae) as handle, pytest.raises(InvalidInput, match='frames="any"'):
        handle.num_frames(3)
    with pytest.raises(InvalidInput, match="frames is 'some', expected one of 'as_is', 'any'"):
        swap(vae, frames="some")
    with swap(vae, frames="any") as handle:
        for count in (0, 2.5, True, "3"):
            with pytest.raises(InvalidInput, match="the count is .*, expected a positive int"):
                handle.num_frames(count)
            with pytest.raises(InvalidInput, match="num_frames is .*, expected 1 to 5"):
                vae.encode(clip_of(5), num_frames=count)
        replaced = handle
        handle = swap(vae, frames="any")
        with pytest.raises(InvalidInput, match="restored or replaced"):
            replaced.num_frames(3)
        monkeypatch.setattr(vae.encoder, "forward", None)
        for count in (0, 6):
            with pytest.raises(InvalidInput, match=f"num_frames is {count}, expected 1 to 5"):
                vae.encode(clip_of(5), num_frames=count)
        with pytest.raises(InvalidInput, match="B, C, T, H, W"):
            vae.encode(torch.zeros(3, 5, 16, 24))
        with pytest.raises(InvalidInput, match="B, C, T, H, W"):
            vae(torch.zeros(3, 5))


def test_what_someone_else_replaced_is_not_overwritten(build):
    for name in ("encode", "decode"):
        vae = build()
        setattr(vae, name, lambda *_: None)
        with pytest.raises(InvalidInput, match=f"replaces {name} of the model, which someone else replaced"):
            swap(vae, frames="any")
        assert "forward" not in vae.encoder.conv_in.__dict__, "a refused swap replaces nothing"
    vae = build()
    vae.decoder.up_blocks[0].forward = lambda *_: None
    with pytest.raises(InvalidInput, match=r"needs the forward of decoder\.up_blocks\.0"):
        swap(vae, frames="any")


def test_restore_and_swapping_again(build):
    vae, clip = build(), clip_of(16)
    before = {name: dict(module.__dict__) for name, module in vae.named_modules()}
    handle = swap(vae, frames="any")
    handle.refresh()
    assert vae(clip).sample.shape[2] == 16
    assert vae.encode(clip).latent_dist.mode().shape[2] == 5
    swap(vae)
    assert not handle.active
    assert vae.encode(clip).latent_dist.mode().shape[2] == 4
    restore(vae)
    assert {name: dict(module.__dict__) for name, module in vae.named_modules()} == before


def test_copies_and_pickles(build):
    vae, clip = build(), clip_of(10)
    expected = swap(vae, frames="any").model(clip).sample
    twin = copy.deepcopy(vae)
    loaded = pickle.loads(pickle.dumps(vae))
    for parameter in vae.parameters():
        parameter.zero_()
    assert torch.equal(twin(clip).sample, expected)
    assert torch.equal(loaded(clip).sample, expected)
    restore(twin)
    assert twin.encode(clip).latent_dist.mode().shape[2] == 3
    assert "encode" not in twin.__dict__
    assert "encode" in loaded.__dict__


def test_hooked_blocks_stay_adapted(build):
    """Nothing is bypassed, so a hook changes nothing about the count."""
    vae, z, seen = build(), latents_of(4), []
    with torch.no_grad(), swap(vae, frames="any") as handle:
        expected = vae.decode(z, num_frames=13).sample
        for block in vae.decoder.up_blocks:
            block.register_forward_hook(lambda *_: seen.append(1))
        got = vae.decode(z, num_frames=13).sample
        replaced = {entry.name for entry in handle.report if entry.replaced}
    assert torch.allclose(got, expected, atol=1e-4)  # hooked, they run module by module: other sums
    assert len(seen) == 2 * len(vae.decoder.up_blocks)
    assert "decoder.up_blocks.0" in replaced


def test_offloading_hooks_of_the_model_fire(build):
    accelerate = pytest.importorskip("accelerate")

    class Counting(accelerate.hooks.ModelHook):
        """Stands for CpuOffload: encode and decode must call it, as diffusers' own do."""

        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    vae, hook = build(), Counting()
    handle = swap(vae, frames="any")
    accelerate.hooks.add_hook_to_module(vae, hook)
    latents = vae.encode(clip_of(6)).latent_dist.mode()
    assert hook.calls == 1
    assert vae.decode(latents, num_frames=6).sample.shape[2] == 6
    assert hook.calls == 2
    assert vae(clip_of(6)).sample.shape[2] == 6
    handle.restore()
    assert vae.encode(clip_of(6)).latent_dist.mode().shape[2] == 2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_frame(checkpointing, build):
    vae = build().requires_grad_(True).train()
    if checkpointing:
        vae.enable_gradient_checkpointing()
    clip = clip_of(6).requires_grad_()
    with swap(vae, frames="any"):
        vae(clip).sample.square().sum().backward()
        expected = clip.grad
        assert (clip.grad.abs().amax(dim=(0, 1, 3, 4)) > 0).all()
        clip = F.pad(clip_of(6), (0, 0, 0, 0, 0, 3), mode="replicate").requires_grad_()
        vae.decode(vae.encode(clip).latent_dist.mode(), num_frames=6).sample.square().sum().backward()
    # Copies of the last frame stand for it: their gradients add up to its own.
    folded = torch.cat([clip.grad[:, :, :5], clip.grad[:, :, 5:].sum(2, keepdim=True)], dim=2)
    assert torch.allclose(folded, expected, rtol=1e-3, atol=1e-5 * expected.abs().max())


@pytest.mark.exhaustive
def test_a_compiled_decoder(build):
    """Also of other lengths, for which the compiler makes the length a symbol."""
    vae = build()
    with torch.no_grad(), swap(vae, frames="any"):
        expected = {n: vae.decode(latents_of(n), num_frames=4 * n - 3).sample for n in (2, 5, 4, 3)}
        vae.decoder.compile(backend="eager", fullgraph=True)
        for n, frames in expected.items():
            got = vae.decode(latents_of(n), num_frames=4 * n - 3).sample
            assert torch.allclose(got, frames, atol=1e-5)
        with pytest.raises(InvalidInput, match=r"4 latents became 13 frames, expected 16.*compiled decoder"):
            vae.decode(latents_of(4), num_frames=16)


def test_an_exchanged_part_is_noticed_and_taken_in(build):
    vae, z = build(), latents_of(4)
    with torch.no_grad(), swap(vae, frames="any") as handle:
        expected = vae.decode(z, num_frames=13).sample
        vae.decoder = build().decoder
        with pytest.raises(InvalidInput, match=r"became 16 frames, expected 13.*handle.refresh\(\)"):
            vae.decode(z, num_frames=13)
        handle.refresh()
        assert torch.equal(vae.decode(z, num_frames=13).sample, expected)


def test_refresh_keeps_what_others_put_around(build):
    vae, calls = build(), []
    with torch.no_grad(), swap(vae, frames="any") as handle:
        ours = vae.decode

        def theirs(*args, **kwargs):
            calls.append(1)
            return ours(*args, **kwargs)

        vae.decode = theirs
        handle.refresh()
        assert vae(clip_of(6)).sample.shape[2] == 6
        assert calls == [1]
        vae.decode = ours


@pytest.mark.parametrize("order", ["hook, swap", "swap, hook, swap", "swap, hook, refresh"])
def test_an_offloaded_model_can_be_adapted(order, build):
    accelerate = pytest.importorskip("accelerate")

    class Counting(accelerate.hooks.ModelHook):
        calls = 0

        def post_forward(self, module, output):
            self.calls += 1
            return output

    vae, hook = build(), Counting()
    for step in order.split(", "):
        if step == "hook":
            accelerate.hooks.add_hook_to_module(vae, hook)
        elif step == "swap":
            handle = swap(vae, frames="any")
        else:
            handle.refresh()
    assert vae(clip_of(6)).sample.shape[2] == 6
    assert hook.calls == 1
    handle.restore()
    assert vae(clip_of(6)).sample.shape[2] == 8
    assert hook.calls == 2
    accelerate.hooks.remove_hook_from_module(vae)
    assert vae(clip_of(6)).sample.shape[2] == 8


def test_nothing_of_the_context_is_left(build):
    vae = build()
    with torch.no_grad(), swap(vae, frames="any"):
        vae(clip_of(6))
        vae.decode(latents_of(2), num_frames=8)
    assert frames_module._NUM_FRAMES.get() is None
    assert frames_module.knows_first_chunk()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_what_is_returned_keeps_nothing_else_alive(layout, build):
    """A view of all frames would be saved whole: 17 for 14, and up to 17 times as many."""
    vae = build()
    vae.decoder.conv_out.to(memory_format=layout)  # which decides the layout of the frames
    with torch.no_grad(), swap(vae, frames="any"):
        whole = vae.decode(latents_of(5), num_frames=17).sample
        assert whole.is_contiguous(memory_format=layout)
        for frames in (1, 14):
            part = vae.decode(latents_of(5), num_frames=frames).sample
            assert part.untyped_storage().nbytes() == part.nbytes
            assert torch.equal(part, whole[:, :, :frames])
            assert part.is_contiguous(memory_format=layout)
        last = vae.decode(latents_of(4), num_frames=15).sample
        assert last.untyped_storage().nbytes() == last.nbytes
        out = vae(clip_of(14)).sample
        assert out.shape[2] == 14 and out.untyped_storage().nbytes() == out.nbytes
