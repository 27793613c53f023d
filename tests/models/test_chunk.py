"""`swap(vae, chunk=...)`: several latents at a time, with the numbers of one by one."""

import pytest
import torch

from causalvae_kernels import InvalidInput, plan_memory, swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core import machine_memory
from causalvae_kernels.models import scheduled
from causalvae_kernels.models.wan_coders import schedule_of
from causalvae_kernels.parity import compare
from tests.support.models import in_float64
from tests.support.wan_models import build

# Each number of latents for one model, each model for one number; all of them at length.
CASES = [
    pytest.param(name, n, marks=() if name == "2.1" and n != 4 or n == 6 else pytest.mark.exhaustive)
    for name in ("2.1", "2.2", "qwen")
    for n in (1, 2, 4, 6, 9)
]


def round_trip(vae, clip, z):
    with torch.no_grad():
        return vae.encode(clip).latent_dist.mode(), vae.decode(z).sample


def inputs(name, latents, batch=1):
    scale = 2 if name == "2.2" else 1
    clip = torch.rand(batch, 3, 4 * latents - 3, 16 * scale, 24 * scale) * 2 - 1
    return clip, torch.randn(batch, build(name).config.z_dim, latents, 3, 2)


@pytest.fixture
def passes(monkeypatch):
    """Return what gives the lengths of the passes since it was last asked."""
    seen, run = [], scheduled.run

    def watched(schedule, link, x, *arguments, **keywords):
        seen.append(x.shape[2])
        return run(schedule, link, x, *arguments, **keywords)

    def lengths():
        found = tuple(seen)
        seen.clear()
        return found

    monkeypatch.setattr(scheduled, "run", watched)
    return lengths


@pytest.mark.parametrize(("name", "latents"), CASES)
def test_as_near_to_the_truth_as_one_by_one(name, latents):
    vae, given = build(name), inputs(name, latents, batch=2)
    reference, oracle = round_trip(vae, *given), round_trip(in_float64(vae), *(t.double() for t in given))
    for chunk in ("auto", 3):
        with swap(vae, chunk=chunk):
            for got, one, truth in zip(round_trip(vae, *given), reference, oracle, strict=True):
                assert got.shape == one.shape
                assert compare(got, one, truth, factor=4.0, worst_factor=8.0).passed


@pytest.mark.parametrize(
    ("chunk", "frames", "latents"),
    [
        ("auto", (1, 16, 16), (1, 4, 4)),
        ("as_is", (1,) + (4,) * 8, (1,) * 9),
        (1, (1,) + (4,) * 8, (1,) * 9),
        (3, (1, 12, 12, 8), (1, 3, 3, 2)),
        (100, (1, 32), (1, 8)),
    ],
)
def test_how_many_at_a_time(chunk, frames, latents, passes):
    with swap(build("2.1"), chunk=chunk) as handle:
        round_trip(handle.model, *inputs("2.1", 9))
    assert passes() == frames + latents


def test_no_more_than_memory_allows(passes, monkeypatch):
    vae, given = build("2.1"), inputs("2.1", 9)
    with swap(vae) as handle:
        round_trip(vae, *given)
        coder, x = vae.encoder, given[0]
        sizes = {n: schedule_of(coder, handle._link, x[:, :, : 4 * n]).size for n in (1, 2, 4)}
    passes()
    assert sizes[1] < sizes[2] < sizes[4]
    with swap(vae, memory_budget=sizes[2]):
        round_trip(vae, *given)
    assert passes()[:5] == (1, 8, 8, 8, 8)
    with swap(vae, memory="low"):
        round_trip(vae, *given)
    assert set(passes()) == {1, 4}
    monkeypatch.setattr(machine_memory, "total", lambda *_: 8 * sizes[2])
    with swap(vae):
        round_trip(vae, *given)
    assert passes()[:5] == (1, 8, 8, 8, 8)


def test_the_plan_knows():
    vae = build("2.1")
    peaks = {}
    for chunk in ("as_is", 4):
        with swap(vae, backend="aten", chunk=chunk):
            peaks[chunk] = plan_memory(vae, 17, 64, 64).untiled
    assert peaks["as_is"] < peaks[4]


@pytest.mark.parametrize("settings", [{"precision": "exact"}, {"tiles": True}, {"gradient": True}], ids=str)
def test_who_goes_one_by_one(settings, passes):
    vae, (_, z) = build("2.1"), inputs("2.1", 6)
    if settings.get("tiles"):
        vae.enable_tiling(16, 16, 8, 8)
    z.requires_grad_(settings.get("gradient", False))
    expected = vae.decode(z).sample
    with swap(vae, chunk=4, precision=settings.get("precision")):
        assert torch.allclose(vae.decode(z).sample, expected, atol=1e-4)
    assert set(passes()) <= {1}


def test_tuples_and_words():
    vae, (_, z) = build("2.1"), inputs("2.1", 6)
    with torch.no_grad(), swap(vae, chunk=2):
        sample = vae.decode(z).sample
        (again,) = vae.decode(z, return_dict=False)
    assert torch.equal(sample, again)
    for chunk, words in (
        (0, "chunk is 0"),
        (2.5, "chunk is 2.5"),
        ("all", "chunk is 'all'"),
        (True, "chunk"),
    ):
        with pytest.raises(InvalidInput, match=words):
            swap(vae, chunk=chunk)
    diffusers = pytest.importorskip("diffusers")
    with pytest.raises(InvalidInput, match="leave chunk out"):
        swap(diffusers.AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), norm_num_groups=2), chunk=2)


def test_a_loop_of_a_subclass_runs():
    diffusers = pytest.importorskip("diffusers")

    class Halved(diffusers.AutoencoderKLWan):
        def _decode(self, z, return_dict=True):
            (sample,) = super()._decode(z, return_dict=False)
            return (sample / 2,)

    vae, (_, z) = build("2.1"), inputs("2.1", 6)
    vae.__class__ = Halved
    with torch.no_grad():
        expected = vae._decode(z)[0]
        with swap(vae):
            assert torch.allclose(vae._decode(z)[0], expected, atol=1e-4)


def test_a_hook_that_looks_at_time_sees_one_latent(passes):
    vae, (_, z) = build("2.1"), inputs("2.1", 6)
    vae.decoder.mid_block.resnets[0].conv1.register_forward_hook(lambda m, a, out: out - out.mean(2, True))
    with torch.no_grad():
        expected = vae.decode(z).sample
        with swap(vae):
            assert torch.allclose(vae.decode(z).sample, expected, atol=1e-4)
            assert torch.allclose(vae._decode(return_dict=False, z=z)[0], expected, atol=1e-4)
    assert set(passes()) == {1}


@pytest.mark.parametrize("name", ["2.1", "2.2", "qwen"])
@pytest.mark.parametrize("latents", [1, 3])
def test_the_last_pass_leaves_no_states(name, latents, monkeypatch):
    """Nobody reads them; of a single image they were three quarters of the memory that a decode took."""
    vae, (clip, z) = build(name), inputs(name, latents)
    kept, run = [], scheduled.run

    def watched(*arguments, keeps=True, **keywords):
        y, new = run(*arguments, keeps=keeps, **keywords)
        kept.append((keeps, new is None))
        return y, new

    monkeypatch.setattr(scheduled, "run", watched)
    with torch.no_grad(), swap(vae):
        vae.encode(clip)
        vae.decode(z)
    passes = [(True, False)] * (len(kept) // 2 - 1) + [(False, True)]
    assert kept == 2 * passes and len(kept) == 2 * min(latents, 2)


@pytest.mark.parametrize("name", ["2.1", "qwen"])
def test_an_image_takes_less_memory_than_in_the_model(name):
    vae, (_, z) = build(name), inputs(name, 1)
    z = z.repeat(1, 1, 1, 4, 4)
    with torch.no_grad():
        theirs = peak_allocated(lambda: vae.decode(z))
        with swap(vae, backend="cpu") as handle:
            vae.decode(z)
            handle.release_memory()
            ours = peak_allocated(lambda: vae.decode(z))
    assert ours < 0.6 * theirs
