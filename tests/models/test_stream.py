"""`encode_stream` and `decode_stream`: the numbers of one call, constant memory, nothing left behind."""

from __future__ import annotations

import functools
import gc
import weakref
from itertools import islice

import pytest
import torch

from causalvae_kernels import InvalidInput, restore, swap
from causalvae_kernels.bench.memory import peak_allocated
from tests.support.cover import quick
from tests.support.models import clip_of
from tests.support.moulds import Mould
from tests.support.seeds import seeded

diffusers = pytest.importorskip("diffusers")

BLOCKS = {
    "block_out_channels": (4, 4, 8),
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 3,
}


@functools.cache
def _mould(quant_convs: bool) -> Mould:
    config = {**BLOCKS, "use_quant_conv": quant_convs, "use_post_quant_conv": quant_convs}
    with seeded(7):
        return Mould(diffusers.AutoencoderKLCogVideoX(**config).eval().requires_grad_(False))


def tiny(quant_convs: bool = False) -> torch.nn.Module:
    """Return a fresh VAE whose latents are 4 times smaller in every direction."""
    return _mould(quant_convs).cast()


@pytest.fixture(scope="module")
def adapted():
    """An adapted model that no test changes."""
    return swap(tiny(), frames="any")


def joined(stream):
    return torch.cat(list(stream), dim=2)


def one_call(model, clip):
    latents = model.encode(clip).latent_dist.mode()
    return latents, model.decode(latents, num_frames=clip.shape[2]).sample


def plain(run, parts):
    """The chunk loop of diffusers on given chunks."""
    done, cache = [], None
    for part in parts:
        out, cache = run(part, conv_cache=cache)
        done.append(out)
    return torch.cat(done, dim=2)


def split(x, first, size):
    """Return chunks of `first`, `size`, `size`, … frames."""
    return [x[:, :, :first], *(x[:, :, first:].split(size, dim=2) if x.shape[2] > first else ())]


@pytest.mark.parametrize("num_frames", quick(range(1, 36), (1, 2, 7, 8, 9, 10, 15, 16, 17, 18, 24, 33)))
def test_a_known_number_gives_the_bits_of_one_call(adapted, num_frames):
    clip = clip_of(num_frames, 8, 12)
    latents, frames = one_call(adapted.model, clip)
    stream = adapted.encode_stream(clip.split(3, dim=2), num_frames=num_frames)
    assert torch.equal(joined(stream), latents)
    assert torch.equal(joined(adapted.decode_stream(latents.split(1, dim=2), num_frames=num_frames)), frames)
    chained = adapted.decode_stream(adapted.encode_stream([clip], num_frames=num_frames))
    assert torch.equal(joined(chained), frames)


VARIANTS = {
    "exact": {"precision": "exact"},
    "bfloat16": {"dtype": torch.bfloat16},
    "bfloat16 exact": {"dtype": torch.bfloat16, "precision": "exact"},
    "batch": {"batch": 2},
    "slicing": {"batch": 2, "slicing": True},
    "tiling": {"tiling": True},
    "tiling bfloat16": {"tiling": True, "dtype": torch.bfloat16},
    "tiling exact": {"tiling": True, "precision": "exact", "batch": 2},
    "tiling and slicing": {"tiling": True, "slicing": True, "batch": 2},
    "quant convs": {"quant_convs": True},
    "quant convs and tiling": {"quant_convs": True, "tiling": True},
}


QUICK_VARIANTS = ("slicing", "bfloat16 exact", "tiling bfloat16", "quant convs")


@pytest.mark.parametrize("variant", quick(VARIANTS, QUICK_VARIANTS))
def test_variants_give_the_bits_of_one_call(variant):
    options = {"dtype": torch.float32, "precision": None, "batch": 1, **VARIANTS[variant]}
    model = tiny(options.get("quant_convs", False)).to(options["dtype"])
    tiling = options.get("tiling", False)
    if tiling:
        model.enable_tiling(16, 16, 0.25, 0.25)
    if options.get("slicing"):
        model.enable_slicing()
    handle = swap(model, frames="any", precision=options["precision"])
    for num_frames in (1, 2, 9, 16, 17, 21):
        height, width = (24, 16) if tiling else (8, 12)
        clip = clip_of(num_frames, height, width, options["batch"], options["dtype"])
        latents, frames = one_call(model, clip)
        got = joined(handle.encode_stream(clip.split(5, dim=2), num_frames=num_frames))
        assert got.dtype == options["dtype"] and torch.equal(got, latents), num_frames
        got = joined(handle.decode_stream(latents.split(2, dim=2), num_frames=num_frames))
        assert got.dtype == options["dtype"] and torch.equal(got, frames), num_frames


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5, 8, 9, 10, 13, 16, 17, 18, 21, 24, 25, 33])
def test_an_unknown_number_goes_in_chunks_of_nine_and_eight(num_frames):
    """The unmodified encoder takes these chunks, and so does its decoder where each looks as what it is."""
    unmodified, handle = tiny(), swap(tiny(), frames="any", precision="exact")
    clip = clip_of(num_frames, 8, 12)
    extra = -(num_frames - 1) % 4
    padded = torch.cat([clip, clip[:, :, -1:].expand(-1, -1, extra, -1, -1)], dim=2)
    moments = plain(unmodified.encoder, split(padded, 9, 8))
    latents = moments.chunk(2, dim=1)[0]

    stream = handle.encode_stream(clip.split(2, dim=2))
    assert stream.num_frames is None
    assert torch.equal(joined(stream), latents) and stream.num_frames == num_frames
    decoder = unmodified.decoder if latents.shape[2] % 2 else handle.model.decoder
    frames = plain(decoder, split(latents, 3, 2))
    assert frames.shape[2] == num_frames + extra
    assert torch.equal(joined(handle.decode_stream(latents.split(1, dim=2))), frames)
    chained = handle.decode_stream(handle.encode_stream([clip]))
    assert torch.equal(joined(chained), frames[:, :, :num_frames]) and chained.num_frames == num_frames


@pytest.mark.parametrize("num_frames", [None, 45])
@pytest.mark.parametrize("size", [1, 3, 40])
def test_items_of_any_size_give_the_same_bits(adapted, size, num_frames):
    clip = clip_of(45, 8, 12)
    expected = list(adapted.encode_stream([clip], num_frames=num_frames))
    got = list(adapted.encode_stream(clip.split(size, dim=2), num_frames=num_frames))
    assert [x.shape[2] for x in got] == ([3, 2, 2, 2, 2, 1] if num_frames is None else [4, 2, 2, 2, 2])
    latents = torch.cat(got, dim=2)
    assert torch.equal(latents, torch.cat(expected, dim=2))
    expected = joined(adapted.decode_stream([latents], num_frames=num_frames))
    assert torch.equal(
        joined(adapted.decode_stream(latents.split(size, dim=2), num_frames=num_frames)), expected
    )


def test_it_computes_as_soon_as_a_chunk_is_there(adapted):
    """And `decode_stream` keeps back no more than it needs to know where the video ends."""
    taken = []

    def frames():
        for n, frame in enumerate(clip_of(40, 8, 12).split(1, dim=2)):
            taken.append(n)
            yield frame

    latents = adapted.encode_stream(frames())
    assert not taken
    next(latents)
    assert len(taken) == 9
    latents.close()
    taken.clear()
    video = adapted.decode_stream(adapted.encode_stream(frames()))
    assert next(video).shape[2] == 9 and len(taken) == 17
    video.close()
    taken.clear()
    video = adapted.decode_stream(adapted.encode_stream(frames(), num_frames=40))
    assert next(video).shape[2] == 9 and len(taken) == 9


def test_sampling_draws_chunk_by_chunk(adapted):
    clip = clip_of(17, 8, 12)

    def sampled(size):
        generator = torch.Generator().manual_seed(3)
        parts = clip.split(size, dim=2)
        return joined(adapted.encode_stream(parts, sample_posterior=True, generator=generator))

    generator = torch.Generator().manual_seed(3)
    mean, logvar = plain(adapted.model.encoder, split(clip, 9, 8)).chunk(2, dim=1)
    shapes = [(1, 3, length, *mean.shape[3:]) for length in (3, 2)]
    noise = torch.cat([torch.randn(shape, generator=generator) for shape in shapes], dim=2)
    expected = mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise
    assert torch.equal(sampled(1), expected) and torch.equal(sampled(17), expected)
    assert not torch.equal(expected, mean)


def test_streams_on_one_model_do_not_disturb_each_other(adapted):
    a, b = clip_of(25, 8, 12), clip_of(25, 8, 12).flip(2)
    expected = [joined(adapted.encode_stream([clip])) for clip in (a, b)]
    videos = [joined(adapted.decode_stream([latents])) for latents in expected]
    got = [[], [], [], []]
    streams = [adapted.encode_stream([clip]) for clip in (a, b)]
    streams += [adapted.decode_stream([latents]) for latents in expected]
    for parts in zip(*streams, strict=True):
        one_call(adapted.model, clip_of(5, 16, 8))
        for kept, part in zip(got, parts, strict=True):
            kept.append(part)
    for kept, whole in zip(got, expected + videos, strict=True):
        assert len(kept) == 3 and torch.equal(torch.cat(kept, dim=2), whole)


class Unhooked:
    """An offloading hook, as accelerate's: weights are where they can be used only after `pre_forward`."""

    def __init__(self) -> None:
        self.calls = 0

    def pre_forward(self, module, *args, **kwargs):
        self.calls += 1
        module.float()
        return args, kwargs


def test_offloaded_weights_come_back_for_every_chunk():
    handle = swap(tiny(), frames="any")
    model = handle.model
    clip = clip_of(25, 8, 12)
    expected = joined(handle.encode_stream([clip]))
    frames = joined(handle.decode_stream([expected]))
    model._hf_hook = Unhooked()
    for stream, whole in (
        (handle.encode_stream([clip]), expected),
        (handle.decode_stream([expected]), frames),
    ):
        model._hf_hook.calls, parts = 0, []
        for part in stream:
            parts.append(part)
            model.to(torch.float64)
        assert torch.equal(torch.cat(parts, dim=2), whole) and model._hf_hook.calls == 3


def test_grad_mode_is_that_of_the_caller():
    model = tiny().requires_grad_(True)
    handle = swap(model, frames="any")
    clip = clip_of(17, 8, 12)
    stream = handle.encode_stream([clip])
    with torch.no_grad():
        assert not next(stream).requires_grad
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled() and next(stream).requires_grad

    def gradients(frames):
        model.zero_grad()
        frames.square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    by_stream = gradients(joined(handle.decode_stream(handle.encode_stream([clip], num_frames=17))))
    by_call = gradients(one_call(model, clip)[1])
    assert len(by_stream) == len(by_call) > 50
    for a, b in zip(by_stream, by_call, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)
    with torch.inference_mode():
        assert joined(handle.encode_stream([clip])).is_inference()


def caches_of(stream):
    """Return weak references to all tensors that the stream keeps for the model."""
    found, left = [], list(stream._session._caches.values())
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value.values())
        elif value is not None:
            found.append(weakref.ref(value))
    assert len(found) > 10 and all(ref() is not None for ref in found)
    return found


@pytest.fixture
def no_collector():
    """What is freed here is freed by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "how",
    quick(
        ["close", "with", "dropped", "exhausted", "producer", "consumer"], ["dropped", "producer", "consumer"]
    ),
)
@pytest.mark.parametrize("direction", quick(["encode", "decode", "both"], ["both"]))
def test_everything_is_freed_at_the_end(adapted, no_collector, how, direction):
    closed = []

    def items(channels, size):
        try:
            for _ in range(4):
                yield torch.rand(1, channels, size, 4, 4)
            if how == "producer":
                raise KeyError("producer")
        finally:
            closed.append(True)

    inner = adapted.encode_stream(items(3, 8)) if direction != "decode" else None
    if direction == "encode":
        stream = inner
    else:
        stream = adapted.decode_stream(items(3, 2) if inner is None else inner)
    next(stream)
    next(stream)
    refs = caches_of(stream) + (caches_of(inner) if direction == "both" else [])
    kept = None
    try:
        if how == "close":
            stream.close()
        elif how == "with":
            with stream:
                pass
        elif how == "dropped":
            # In "both", the inner stream is still held here, and closed nevertheless.
            del stream
            if direction == "encode":
                del inner
        elif how == "consumer":
            consume([stream])
        else:
            refs += [weakref.ref(x) for x in stream]
    except (KeyError, ZeroDivisionError) as error:
        kept = error
        if how == "consumer":
            del stream
            if direction == "encode":
                del inner
    assert (kept is not None) == (how in ("producer", "consumer"))
    assert closed == [True]
    assert [ref() for ref in refs if ref() is not None] == []


def consume(held):
    for _ in held.pop():
        raise ZeroDivisionError("consumer")


def never(*args, **kwargs):
    raise AssertionError("the model ran")


def test_a_wrong_number_of_frames(adapted, monkeypatch):
    clip = clip_of(10, 8, 12)
    latents = joined(adapted.encode_stream([clip]))
    stream = adapted.encode_stream(clip.split(1, dim=2), num_frames=11)
    with pytest.raises(InvalidInput, match="encode_stream: frames: they ended after 10, expected 11"):
        joined(stream)
    assert list(stream) == []
    stream = adapted.decode_stream(latents.split(1, dim=2), num_frames=17)
    needed = "latents: they ended after 4, expected 5, which 17 frames need"
    with pytest.raises(InvalidInput, match=needed):
        joined(stream)

    class Counted(list):
        num_frames = None

    counted = Counted([latents])
    stream = adapted.decode_stream(counted)
    counted.num_frames = 9
    with pytest.raises(InvalidInput, match="they ended after 4, expected 3, which 9 frames need"):
        joined(stream)

    monkeypatch.setattr(adapted.model.encoder, "forward", never)
    monkeypatch.setattr(adapted.model.decoder, "forward", never)
    with pytest.raises(InvalidInput, match="got more than expected, at least 10, expected 9"):
        next(adapted.encode_stream([clip], num_frames=9))
    with pytest.raises(InvalidInput, match="latents: .* at least 4, expected 3, which 8 frames need"):
        next(adapted.decode_stream([latents], num_frames=8))


def test_the_number_of_frames_of_the_input(adapted):
    """An object with the attribute counts; one that forgets the number gives all frames."""
    latents = joined(adapted.encode_stream([clip_of(10, 8, 12)]))

    class Counted(list):
        num_frames = None

    assert joined(adapted.decode_stream(Counted([latents]))).shape[2] == 13
    counted = Counted([latents])
    counted.num_frames = 11
    stream = adapted.decode_stream(counted)
    assert stream.num_frames == 11 and joined(stream).shape[2] == 11
    for bad in (0, "ten", len):
        counted.num_frames = bad
        with pytest.raises(InvalidInput, match="latents.num_frames is .*, expected a positive int"):
            adapted.decode_stream(counted)


def test_nothing_in_nothing_out(adapted):
    stream = adapted.encode_stream([])
    video = adapted.decode_stream(stream)
    assert list(video) == [] and stream.num_frames == video.num_frames == 0


BAD_ITEMS = {
    "no iterable": (7, "frames is a int, expected an iterable of tensors"),
    "a tensor": (torch.zeros(1, 3, 9, 8, 8), "frames is a Tensor, expected an iterable of tensors, such as"),
    "no tensors": (["a"], "an item of frames is a str, expected a tensor of shape"),
    "frames without a batch": ([torch.zeros(3, 9, 8, 8)], "expected five dimensions"),
    "no frame in an item": ([torch.zeros(1, 3, 0, 8, 8)], "expected at least one of everything"),
    "other channels": ([torch.zeros(1, 4, 9, 8, 8)], "have 4 channels, expected 3"),
    "another size": (
        [torch.zeros(1, 3, 9, 8, 8), torch.zeros(1, 3, 8, 8, 4)],
        r"frames after the first 9 have shape \(1, 3, 8, 8, 4\), torch.float32, on cpu, "
        r"expected \(1, 3, t, 8, 8\), torch.float32, on cpu",
    ),
    "another batch": (
        [torch.zeros(1, 3, 9, 8, 8), torch.zeros(2, 3, 8, 8, 8)],
        r"expected \(1, 3, t, 8, 8\)",
    ),
    "another dtype": (
        [torch.zeros(1, 3, 9, 8, 8), torch.zeros(1, 3, 8, 8, 8).half()],
        "torch.float16, on cpu",
    ),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_bad_items(adapted, case):
    items, sentence = BAD_ITEMS[case]
    with pytest.raises(InvalidInput, match=f"^encode_stream: .*{sentence}"):
        joined(adapted.encode_stream(items))


def test_bad_handles_and_numbers(adapted):
    for number in (0, -3, True, 2.0, "9"):
        with pytest.raises(InvalidInput, match="encode_stream: num_frames is .*, expected a positive int"):
            adapted.encode_stream([], num_frames=number)
        with pytest.raises(InvalidInput, match="decode_stream: num_frames is .*, expected a positive int"):
            adapted.decode_stream([], num_frames=number)
    handle = swap(tiny())
    for method in (handle.encode_stream, handle.decode_stream):
        with pytest.raises(InvalidInput, match=r'call swap\(vae, frames="any"\)'):
            method([])
    handle = swap(tiny(), frames="any")
    handle.restore()
    with pytest.raises(InvalidInput, match="this swap was restored; call swap"):
        handle.encode_stream([])
    model = tiny()
    model.num_sample_frames_batch_size = 6
    with pytest.raises(InvalidInput, match="chunks of 6 frames are no whole latents of 4"):
        swap(model, frames="any").encode_stream([])


@pytest.mark.parametrize("how", ["restore", "swap again"])
def test_a_swap_that_ends_meanwhile(how):
    handle = swap(tiny(), frames="any")
    latents = handle.encode_stream(clip_of(17, 8, 12).split(1, dim=2))
    frames = handle.decode_stream(torch.zeros(1, 3, 5, 2, 3).split(1, dim=2))
    next(latents), next(frames)
    restore(handle.model) if how == "restore" else swap(handle.model, frames="any")
    for stream, call in ((latents, "encode_stream"), (frames, "decode_stream")):
        with pytest.raises(InvalidInput, match=f"{call}: the swap was restored while it was open"):
            next(stream)
        assert list(stream) == []


@pytest.mark.parametrize("change", ["tiling", "slicing"])
def test_tiling_and_slicing_do_not_change_meanwhile(change):
    model = tiny()
    stream = swap(model, frames="any").encode_stream([clip_of(17, 24, 24, batch=2)])
    next(stream)
    model.enable_tiling(16, 16, 0.25, 0.25) if change == "tiling" else model.enable_slicing()
    with pytest.raises(InvalidInput, match="tiling or slicing was changed while a stream is open"):
        next(stream)


def video_of(num_frames, channels, size):
    """Make random frames, or latents, one by one; keep none."""
    for _ in range(num_frames):
        yield torch.rand(1, channels, 1, size, size)


@pytest.mark.parametrize("direction", quick(["encode", "decode", "both"], ["both"]))
@pytest.mark.parametrize("known", quick([True, False], [False]), ids=["known", "unknown"])
def test_memory_does_not_grow_with_the_number_of_frames(adapted, direction, known):
    def run(num_frames):
        number = {"num_frames": num_frames} if known else {}
        if direction == "decode":
            latents = video_of((num_frames + 3) // 4, 3, 16)
            stream = adapted.decode_stream(latents, **number)
        else:
            stream = adapted.encode_stream(video_of(num_frames, 3, 64), **number)
            stream = adapted.decode_stream(stream) if direction == "both" else stream
        return sum(1 for _ in islice(stream, 100))

    short, long = (peak_allocated(lambda n=n: run(n)) for n in (33, 129))
    print(f"peak of 33 frames {short}, of 129 frames {long}, ratio {long / short:.3f}")
    assert 0 < long <= 1.1 * short


def test_memory_of_one_call_grows(adapted):
    """So the measure above would see it if a stream kept what it made."""
    short, long = (
        peak_allocated(lambda n=n: joined(adapted.decode_stream(video_of(n, 3, 16)))) for n in (9, 33)
    )
    assert long > 1.3 * short


@torch.no_grad()
def test_the_last_part_keeps_nothing_else_alive(adapted):
    clip = clip_of(14, 8, 12)
    latents = list(adapted.encode_stream([clip], num_frames=14))
    frames = list(adapted.decode_stream(latents, num_frames=14))
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in (*latents, *frames))
