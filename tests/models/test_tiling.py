"""`swap(vae, tiling="auto")`: in one piece where that fits."""

import copy
import pickle

import pytest
import torch

from causalvae_kernels import InvalidInput, plan_memory, restore, swap
from causalvae_kernels.models import pieces, plan, tiling
from causalvae_kernels.workloads import make_video, small_cogvideox_config

diffusers = pytest.importorskip("diffusers")

LATENTS = (1, 16, 3, 6, 9)


@pytest.fixture
def vae():
    """A model with two by two tiles for `LATENTS`."""
    torch.manual_seed(5)
    config = small_cogvideox_config()
    model = diffusers.AutoencoderKLCogVideoX(sample_height=64, sample_width=96, **config)
    return model.eval().requires_grad_(False)


@pytest.fixture
def latents():
    return torch.randn(LATENTS)


@torch.no_grad()
def decode(model, z):
    return model.decode(z).sample


def needed(model):
    return plan.plan_step(model, "decode", LATENTS, tiled=False).untiled


def test_in_one_piece_where_it_fits(vae, latents):
    vae.disable_tiling()
    with swap(vae):
        whole = decode(vae, latents)
    vae.enable_tiling()
    with swap(vae):
        tiled = decode(vae, latents)
    assert not torch.equal(whole, tiled)
    with swap(vae, tiling="auto", memory_budget=2**40):
        assert torch.equal(decode(vae, latents), whole)
        assert vae.use_tiling  # the user's setting is back
    with swap(vae, tiling="auto", memory_budget=0):
        vae.disable_tiling()
        assert torch.equal(decode(vae, latents), tiled)
        assert not vae.use_tiling


def test_the_budget_is_what_the_plan_says(vae, latents, monkeypatch):
    seen = []
    for name in ("in_one_piece", "in_tiles"):
        monkeypatch.setattr(tiling, name, lambda m, n=name: seen.append(n) or getattr(pieces, n)(m))
    handle = swap(vae, tiling="auto", backend="aten")  # which packs nothing
    most = needed(vae)
    for budget in (most, most - 1):
        with swap(vae, tiling="auto", memory_budget=budget, backend="aten"):
            decode(vae, latents)
    assert seen == ["in_one_piece", "in_tiles"]
    assert not handle.active


def test_the_environment_sets_the_budget(vae, latents, monkeypatch):
    seen = []
    monkeypatch.setattr(tiling, "in_tiles", lambda m: seen.append(1) or pieces.in_tiles(m))
    monkeypatch.setenv("CAUSALVAE_KERNELS_MEMORY_MIB", "1")
    with swap(vae, tiling="auto"):
        decode(vae, latents)
    assert seen == [1]


def test_a_shape_is_planned_once(vae, latents, monkeypatch):
    planned = []
    monkeypatch.setattr(
        tiling, "plan_step", lambda *a, **k: planned.append(a[1:3]) or plan.plan_step(*a, **k)
    )
    with swap(vae, tiling="auto", memory_budget=2**40):
        for z in (latents, latents, latents[:, :, :1], latents):
            decode(vae, z)
    assert planned == [("decode", torch.Size(LATENTS)), ("decode", torch.Size((1, 16, 1, 6, 9)))]


def test_with_any_number_of_frames(vae):
    clip = make_video(8, 48, 72)
    with torch.no_grad(), swap(vae, tiling="auto", frames="any", memory_budget=2**40):
        encoded = vae.encode(clip)
        assert vae.decode(encoded.latent_dist.mode(), num_frames=8).sample.shape == clip.shape


def test_restore_copies_and_pickles(vae, latents):
    before = set(vae.__dict__)
    handle = swap(vae, tiling="auto", memory_budget=0)
    expected = decode(vae, latents)
    for other in (copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert torch.equal(decode(other, latents), expected)
        restore(other)
        assert "decode" not in other.__dict__
    handle.restore()
    assert set(vae.__dict__) == before


def test_a_plan_looks_at_both_ways_whatever_the_swap_chooses(vae):
    with swap(vae, backend="aten"):
        expected = plan_memory(vae, 9, 48, 72, available=0)
    with swap(vae, tiling="auto", memory_budget=0, backend="aten"):
        assert plan_memory(vae, 9, 48, 72, available=0) == expected


def test_gradients_keep_the_setting(vae, latents, monkeypatch):
    monkeypatch.setattr(tiling, "plan_step", lambda *a, **k: pytest.fail("a plan counts no gradients"))
    with swap(vae, tiling="auto", memory_budget=0):
        vae.decode(latents.requires_grad_())


def test_hunyuan_in_one_piece_has_no_windows_in_time():
    config = {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    model = diffusers.AutoencoderKLHunyuanVideo(**config).eval()
    assert model.use_framewise_decoding
    z = torch.randn(1, 4, 6, 4, 4)
    with torch.no_grad():
        windows = model.decode(z).sample
        with pieces.in_one_piece(model):
            whole = model.decode(z).sample
            assert not model.use_framewise_decoding
        expected = model.decoder(model.post_quant_conv(z))
    assert torch.equal(whole, expected)
    assert whole.shape == windows.shape
    assert not torch.equal(whole, windows)
    assert model.use_framewise_decoding


@pytest.mark.parametrize(
    ("options", "words"),
    [({"tiling": "never"}, "tiling is 'never'"), ({"memory_budget": -1}, "memory_budget is -1")],
)
def test_refusals(vae, options, words):
    with pytest.raises(InvalidInput, match=words):
        swap(vae, **options)


def test_a_foreign_decode_is_refused(vae):
    vae.decode = lambda z: z
    with pytest.raises(InvalidInput, match='tiling="auto" replaces decode'):
        swap(vae, tiling="auto")


def test_in_inference_mode(vae, latents):
    with torch.inference_mode(), swap(vae, tiling="auto", memory_budget=2**40, backend="cpu"):
        whole = vae.decode(latents).sample
    with swap(vae, backend="cpu"):
        assert torch.equal(decode(vae, latents), whole)
