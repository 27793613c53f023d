"""`swap(vae, memory="low")`: the same numbers in less memory."""

import copy
import pickle

import pytest
import torch

from causalvae_kernels import InvalidInput, swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.coder import Steps, overlay
from causalvae_kernels.coder import build as build_schedule
from causalvae_kernels.models.cogvideox_coders import _Reader
from causalvae_kernels.models.plan import call, plan_step
from causalvae_kernels.parity import compare


@torch.no_grad()
def run(vae, step, x):
    y = call(vae, step, x)
    return y if step == "decode" else y.mode()


@pytest.fixture
def pairs(monkeypatch):
    """Count the convolutions that write over what they read."""
    seen, original = [], overlay.Overlay

    def counted(*arguments):
        seen.append(1)
        return original(*arguments)

    monkeypatch.setattr(overlay, "Overlay", counted)
    return seen


CASES = [
    # one chunk of an odd and of an even number of frames; two chunks; a batch; another layout
    ("cpu", torch.float32, 3, 1),
    ("cpu", torch.bfloat16, 2, 1),
    ("cpu", torch.float32, 5, 2),
    ("aten", torch.float32, 5, 1),
    pytest.param("aten", torch.bfloat16, 4, 1, marks=pytest.mark.exhaustive),
    ("reference", torch.float32, 3, 1),
]


@pytest.mark.parametrize(("backend", "dtype", "latents", "batch"), CASES)
@pytest.mark.parametrize(("step", "config_name"), [("encode", "small"), ("decode", "odd")])
def test_the_same_bits(build, config_name, step, backend, dtype, latents, batch, pairs):
    vae = build(config_name, dtype)
    if step == "decode":
        x = torch.randn(batch, vae.config.latent_channels, latents, 4, 6).to(dtype)
    else:
        x = torch.randn(batch, 3, 4 * latents - 3, 32, 48).to(dtype)
    unmodified = run(vae, step, x)
    with swap(vae, backend=backend):
        expected = run(vae, step, x)
    assert not pairs
    with swap(vae, backend=backend, memory="low"):
        found = run(vae, step, x)
    assert pairs
    if backend == "cpu":  # the same kernel sees the same pairs of frames
        assert torch.equal(found, expected)
    else:  # the framework may sum in another order for fewer frames: as near to the truth as the original
        oracle = run(vae.double(), step, x.double())
        assert compare(found, unmodified, oracle).passed


@pytest.mark.parametrize(("step", "shape"), [("decode", (1, 16, 3, 6, 8)), ("encode", (1, 3, 9, 48, 64))])
def test_the_peak_is_lower_and_planned(build, step, shape):
    vae, x, peaks = build(), torch.randn(shape), {}
    for memory in ("normal", "low"):
        with swap(vae, backend="cpu", memory=memory):
            run(vae, step, x)
            peaks[memory] = peak_allocated(lambda: run(vae, step, x))
            planned = plan_step(vae, step, shape, tiled=False).untiled
            assert abs(planned - peaks[memory]) <= peaks[memory] / 10
    assert peaks["low"] < 0.85 * peaks["normal"]  # of a decode of larger frames 0.81


@pytest.mark.parametrize("first", [True, False])
def test_two_activations_and_two_frames_in_a_block(build, first):
    """A residual block takes its input, which is the residual, and a buffer of two frames more."""
    vae = build()
    block = vae.decoder.mid_block.resnets[0]
    assert block.in_channels == block.out_channels
    shape = (1, block.in_channels, 9, 16, 16)
    frame = 4 * block.in_channels * 16 * 16
    handle = swap(vae, backend="cpu", memory="low")
    steps = Steps(torch.channels_last_3d, first)
    x, z = steps.new(shape, torch.float32), steps.take(torch.randn(1, 16, 3, 2, 2))
    x = steps.call("made", lambda *_: None, x, keeps=False)
    reader = _Reader(handle._link, steps, z, adapts=False)
    x = reader.norm(block.norm1, x, "before", None)  # what lies in the arena
    for key in (("a",), ("b",)):
        x = reader.resnet(block, x, key)
    steps.returns(reader.norm(block.norm1, x, "behind", None), torch.contiguous_format)
    schedule = build_schedule(steps, torch.device("cpu"), backend="cpu", precision="high", low=True)
    factors = 4 * 2 * block.in_channels * 3 * 2 * 2
    assert schedule.size <= (9 + 11) * frame + factors


def test_tiles_and_slices(build):
    vae = build()
    vae.tile_latent_min_height, vae.tile_latent_min_width = 4, 4
    vae.tile_sample_min_height, vae.tile_sample_min_width = 32, 32
    vae.enable_tiling()
    vae.enable_slicing()
    z = torch.randn(2, 16, 5, 6, 6)
    results = []
    for memory in ("normal", "low"):
        with swap(vae, backend="cpu", memory=memory):
            results.append(run(vae, "decode", z))
    assert torch.equal(*results)


def test_a_cache_that_somebody_holds_is_left_alone(build):
    vae = build()
    chunks = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 16, 2, 4, 6)
    with torch.no_grad(), swap(vae, backend="cpu", memory="low"):
        _, cache = vae.decoder(chunks[0])
        state = cache["mid_block"]["resnet_0"]["conv1"]
        assert state.shape[2] == 2
        first, _ = vae.decoder(chunks[1], conv_cache=cache)
        assert cache["mid_block"]["resnet_0"]["conv1"] is state
        again, _ = vae.decoder(chunks[1], conv_cache=cache)
    assert torch.equal(first, again)


def test_gradients_are_those_of_the_normal_way(build):
    grads = []
    for memory in ("normal", "low"):
        vae, z = build(), torch.linspace(-1, 1, 16 * 3 * 4 * 6).reshape(1, 16, 3, 4, 6).requires_grad_()
        with swap(vae, backend="aten", memory=memory):
            vae.decode(z).sample.square().sum().backward()
        grads.append(z.grad)
    assert torch.equal(*grads)


def test_autocast_runs_as_without(build, pairs):
    """The convolutions' results are narrower than what they would write over."""
    vae, z, results = build(), torch.randn(1, 16, 3, 2, 2), []
    for memory in ("normal", "low"):
        with swap(vae, backend="aten", memory=memory), torch.autocast("cpu", torch.bfloat16):
            results.append(run(vae, "decode", z))
    assert not pairs and torch.equal(*results)


def test_any_number_of_frames_and_streams(build):
    vae = build()
    z = torch.randn(1, 16, 5, 4, 6)
    results = []
    for memory in ("normal", "low"):
        with torch.no_grad(), swap(vae, backend="cpu", memory=memory, frames="any") as handle:
            results.append(
                (vae.decode(z, num_frames=14).sample, torch.cat([*handle.decode_stream([z])], dim=2))
            )
    for normal, low in zip(*results, strict=True):
        assert torch.equal(normal, low)


def test_restore_copies_and_pickles(build):
    vae = build()
    before, z = set(vae.__dict__), torch.randn(1, 16, 5, 4, 6)
    handle = swap(vae, backend="cpu", memory="low")
    expected = run(vae, "decode", z)
    for other in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert torch.equal(run(other, "decode", z), expected)
    handle.restore()
    assert set(vae.__dict__) == before


def test_a_failed_call_leaves_nothing_behind(build):
    vae, z = build(), torch.randn(1, 16, 5, 4, 6)
    with swap(vae, backend="cpu", memory="low"):
        expected = run(vae, "decode", z)
        with pytest.raises(InvalidInput, match="channels"):
            run(vae, "decode", torch.randn(1, 5, 5, 4, 6))
        assert torch.equal(run(vae, "decode", z), expected)


def test_other_words_are_refused(build):
    with pytest.raises(InvalidInput, match="memory is 'least'"):
        swap(build(), memory="least")
