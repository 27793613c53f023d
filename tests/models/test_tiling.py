"""`swap(vae, tiling="auto")`: in one piece where that fits."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from causalvae_kernels import InvalidInput, plan_memory, restore, swap
from causalvae_kernels.core import dry_run
from causalvae_kernels.models import pieces, plan, tiling
from causalvae_kernels.workloads import make_video, small_cogvideox_config
from tests.support.tiny_vaes import TINY_VAES

diffusers = pytest.importorskip("diffusers")

LATENTS = (1, 16, 2, 5, 6)


@pytest.fixture
def vae():
    """A model with two by two tiles for `LATENTS`, overlapping by whole latents."""
    torch.manual_seed(5)
    config = small_cogvideox_config()
    model = diffusers.AutoencoderKLCogVideoX(sample_height=64, sample_width=96, **config)
    model.tile_overlap_factor_height, model.tile_overlap_factor_width = 0.25, 0.5
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
        assert vae.use_tiling  # the user's setting
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
    assert planned == [("decode", torch.Size(LATENTS)), ("decode", torch.Size((1, 16, 1, 5, 6)))]


@pytest.mark.exhaustive
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


@pytest.mark.exhaustive
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
        whole = pieces.in_one_piece(model).decode(z).sample
        expected = model.decoder(model.post_quant_conv(z))
    assert torch.equal(whole, expected)
    assert whole.shape == windows.shape
    assert not torch.equal(whole, windows)
    assert model.use_framewise_decoding


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tiling": "never"}, "tiling is 'never'"),
        ({"memory_budget": -1}, "memory_budget is -1"),
        ({"memory_budget": 5}, "memory_budget is 5 and tiling 'as_is', expected tiling=\"auto\""),
    ],
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


@pytest.mark.parametrize("name", ["Wan2.1", "HunyuanImageRefiner"])
def test_tiles_of_another_size_never_run(name):
    model = TINY_VAES[name].build()
    model.enable_tiling(tile_sample_min_height=128, tile_sample_min_width=128)  # Wan's stride stays 192
    model.disable_tiling()
    channels = model.config.get("z_dim") or model.config.latent_channels
    z = torch.randn(1, channels, 1, 3, 17)
    with swap(model, tiling="auto", memory_budget=0), pytest.raises(InvalidInput, match="it cannot be tiled"):
        decode(model, z)
    expected = decode(model, z)
    with swap(model, tiling="auto", memory_budget=2**40, precision="exact"):
        model.use_tiling = True
        assert torch.equal(decode(model, z), expected)


@pytest.mark.exhaustive
def test_new_tiles_are_planned_anew(vae, latents):
    with swap(vae, tiling="auto", memory_budget=0):
        decode(vae, latents)
        vae.tile_overlap_factor_width = 1 / 5  # no whole number of latents
        with pytest.raises(InvalidInput, match="it cannot be tiled"):
            decode(vae, latents)


class _Meeting(diffusers.AutoencoderKLCogVideoX):
    """Decodes when as many threads as the barrier is for are at it."""

    barrier = threading.Barrier(2)

    def _decode(self, z, return_dict=True):
        if dry_run.current() is None:
            self.barrier.wait(60)
        return super()._decode(z, return_dict=return_dict)


def test_threads_with_opposite_settings():
    vae = TINY_VAES["CogVideoX"].build(sample_height=64, sample_width=96)
    vae.tile_overlap_factor_height, vae.tile_overlap_factor_width = 0.25, 0.5
    latents = torch.randn(1, 2, 2, 5, 6)
    small = latents[:, :, :1]
    # "low" puts a method more on the model; "aten" packs nothing.
    options = {"memory": "low", "backend": "aten"}
    with swap(vae, **options):
        budget = plan.plan_step(vae, "decode", latents.shape, tiled=False).untiled - 1
        vae.disable_tiling()
        expected = [decode(vae, small)]
        vae.enable_tiling()
        expected.append(decode(vae, latents))
    vae.__class__ = _Meeting
    with swap(vae, tiling="auto", memory_budget=budget, **options), ThreadPoolExecutor(2) as threads:
        before = dict(vae.__dict__)
        results = list(threads.map(lambda z: decode(vae, z), (small, latents)))
        assert vae.__dict__ == before
    assert all(map(torch.equal, results, expected))


def test_threads_share_no_cache():
    model = TINY_VAES["Wan2.1"].build()
    clips = [torch.randn(1, 2, 2, 4, 5) for _ in range(4)]
    with swap(model, tiling="auto", memory_budget=2**40):
        expected = [decode(model, z) for z in clips]
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda z: decode(model, z), clips))
    assert all(map(torch.equal, results, expected))


def _with_item(model):
    cls = type(model.decoder.conv_in)

    class Reads(cls):
        def forward(self, x, cache_x=None):
            return super().forward(x * (1 if x.sum().item() else 2), cache_x)

    model.decoder.conv_in.__class__ = Reads


class _Scaled(torch.Tensor):
    pass


def _with_subclass(model):
    weight = model.decoder.conv_in.weight
    model.decoder.conv_in.weight = torch.nn.Parameter(weight.as_subclass(_Scaled), requires_grad=False)


UNPLANNED = {
    "a lock": (lambda m: setattr(m, "lock", threading.Lock()), "cannot be copied"),
    "a file": (lambda m: setattr(m, "file", open(__file__)), "cannot be copied"),  # noqa: SIM115
    "item": (_with_item, "without data: DataDependentOutputException"),
    "a subclass": (_with_subclass, r"decoder.conv_in \(\w+\) holds a _Scaled, expected plain tensors"),
}


@pytest.mark.parametrize("name", UNPLANNED)
def test_what_cannot_be_planned_runs_as_it_is_set(name):
    prepare, words = UNPLANNED[name]
    model = TINY_VAES["Wan2.1"].build()
    prepare(model)
    z = torch.randn(1, 2, 1, 4, 5)
    with pytest.raises(InvalidInput, match=words):
        plan_memory(model, 1, 32, 40)
    with swap(model):
        expected = decode(model, z)
    with swap(model, tiling="auto"):
        with pytest.warns(UserWarning, match=words) as warned:
            decode(model, z[..., :3])
            assert torch.equal(decode(model, z), expected)
        assert len(warned) == 1


def test_halves_of_two_dtypes():
    model = TINY_VAES["Wan2.1"].build()
    model.decoder.bfloat16()
    model.post_quant_conv.bfloat16()
    z = torch.randn(1, 2, 1, 4, 5, dtype=torch.bfloat16)
    expected = decode(model, z)
    assert plan_memory(model, 1, 32, 40).dtype == "bfloat16"
    assert plan_memory(model, 1, 32, 40, step="encode").dtype == "float32"
    with swap(model, tiling="auto", memory_budget=2**40, precision="exact"):
        assert torch.equal(decode(model, z), expected)
