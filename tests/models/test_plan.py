"""The memory that a plan tells against what is measured when the step runs."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from causalvae_kernels import (
    InvalidInput,
    frame_rule,
    packed_size,
    plan_memory,
    release_packed_weights,
    restore,
    swap,
)
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core import dry_run
from causalvae_kernels.models import conv
from causalvae_kernels.models.pieces import has_tiling, in_one_piece, in_tiles
from causalvae_kernels.models.plan import call, clip_channels, plan_step
from causalvae_kernels.workloads import small_cogvideox_config
from tests.support.tiny_vaes import TINY_VAES

diffusers = pytest.importorskip("diffusers")
logging.getLogger("diffusers").setLevel(logging.ERROR)

CLIP = (1, 3, 9, 48, 72)
LATENTS = {
    "small": (1, 16, 3, 6, 9),
    "as 2b": (1, 16, 3, 6, 9),
    "wan": (1, 4, 2, 6, 9),
    "hunyuan": (1, 4, 3, 6, 9),
}


def _cogvideox(**config):
    # Two by three tiles of 32x48 and what is left, overlapping by whole latents.
    model = diffusers.AutoencoderKLCogVideoX(sample_height=64, sample_width=96, **config)
    model.tile_overlap_factor_height, model.tile_overlap_factor_width = 0.25, 0.5
    return model


MODELS = {
    "small": lambda: _cogvideox(**small_cogvideox_config()),
    "as 2b": lambda: _cogvideox(
        block_out_channels=(16, 32, 32, 64), layers_per_block=3, latent_channels=16, norm_num_groups=16
    ),
    "wan": lambda: diffusers.AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
    "hunyuan": lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4
    ),
}


def _measured(vae, step, shape, tiled):
    (vae.enable_tiling if tiled else vae.disable_tiling)()
    x = torch.randn(shape).to(vae.dtype)
    with torch.no_grad():
        call(vae, step, x)  # packs weights
        return peak_allocated(lambda: call(vae, step, x))


def _assert_within(predicted, measured, words):
    assert measured / 1.1 <= predicted <= measured * 1.1, (
        f"{words}: predicted {predicted}, measured {measured}"
    )


CASES = [
    ("small", torch.float32, "decode", True),
    ("small", torch.bfloat16, "encode", True),
    ("small", torch.bfloat16, "decode", False),
    ("as 2b", torch.float32, "encode", True),
    ("as 2b", torch.bfloat16, "decode", True),
    ("wan", torch.float32, "decode", False),
    ("wan", torch.bfloat16, "encode", False),
    ("hunyuan", torch.float32, "encode", False),
    ("hunyuan", torch.bfloat16, "decode", False),
]


@pytest.mark.costly
@pytest.mark.parametrize(("name", "dtype", "step", "swapped"), CASES)
def test_prediction_is_what_is_measured(name, dtype, step, swapped, monkeypatch):
    monkeypatch.setattr(conv, "SMALL", 0)
    vae = MODELS[name]().eval().requires_grad_(False).to(dtype)
    if swapped:
        swap(vae)
    shape = LATENTS[name] if step == "decode" else CLIP
    tiles = "CogVideoX" in type(vae).__name__  # the tiles of the others are larger than this clip
    plan = plan_step(vae, step, shape, tiled=tiles)
    _assert_within(plan.untiled, _measured(vae, step, shape, False), "untiled")
    if tiles:
        _assert_within(plan.tiled, _measured(vae, step, shape, True), "tiled")
        assert plan.tiled < plan.untiled


def test_tiles_of_other_families(monkeypatch):
    vae = MODELS["hunyuan"]().eval().requires_grad_(False)
    vae.tile_sample_min_height = vae.tile_sample_min_width = 32
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 24
    plan = plan_step(vae, "decode", LATENTS["hunyuan"])
    _assert_within(plan.tiled, _measured(vae, "decode", LATENTS["hunyuan"], True), "tiled")
    assert plan.tiled < plan.untiled


def test_the_native_kernels_allocations_are_counted():
    release_packed_weights()
    # `auto` takes them for some shapes and not on every processor: here for all.
    vae = MODELS["small"]().eval().requires_grad_(False)
    swap(vae, backend="cpu")
    shape = LATENTS["small"]
    plan = plan_step(vae, "decode", shape, tiled=False)
    _assert_within(plan.untiled, _measured(vae, "decode", shape, False), "decode")
    assert plan.packed > 0
    assert packed_size() == plan.packed  # and the measured run has kept as much


def test_plan_of_a_clip():
    vae = MODELS["small"]().eval()
    before = packed_size()
    plan = plan_memory(vae, 5, 40, 48, available=2**40)
    assert (plan.shape, plan.step, plan.verdict) == ((1, 16, 2, 5, 6), "decode", "untiled")
    assert plan.loaded
    assert plan.needed() == plan.untiled + plan.packed
    assert packed_size() == before
    assert not vae.use_tiling
    assert dataclasses.replace(plan, available=plan.needed()).verdict == "untiled"
    assert dataclasses.replace(plan, available=plan.needed() - 1).verdict == "tiled"
    assert dataclasses.replace(plan, available=plan.needed(tiled=True) - 1).verdict == "too large"


def test_meta_parameters_are_to_be_loaded():
    with torch.device("meta"):
        vae = MODELS["small"]().eval()
    plan = plan_memory(vae, 1, 16, 16, step="encode", available=0)
    assert not plan.loaded
    assert plan.device == "cpu"
    assert plan.needed() == plan.untiled + plan.parameters
    assert plan.parameters == sum(p.nbytes for p in vae.parameters())


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch can stand for a GPU")
def test_a_torch_without_cuda_cannot_stand_for_a_gpu():
    with pytest.raises(InvalidInput, match="without CUDA"):
        plan_step(MODELS["small"]().eval(), "decode", LATENTS["small"], device="cuda")


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch knows of no GPUs")
def test_a_gpu_that_need_not_be_there():
    plan = plan_step(MODELS["small"]().eval(), "decode", LATENTS["small"], device="cuda", available=0)
    assert plan.device == "cuda"
    assert plan.untiled > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((0, 48, 72), "num_frames is 0"), ((9, 48, -1), "width is -1"), ((9, 4, 4), "cannot")],
)
def test_refusals(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        plan_memory(MODELS["small"]().eval(), *arguments)


def test_a_failed_plan_leaves_no_dry_run_behind():
    with pytest.raises(InvalidInput):
        plan_step(MODELS["small"]().eval(), "decode", (1, 5, 3, 6, 9))
    assert dry_run.current() is None
    assert type(torch.empty(1)) is torch.Tensor


@pytest.mark.parametrize("name", TINY_VAES)
def test_a_clip_has_the_channels_of_the_model(name):
    with torch.device("meta"):
        vae = TINY_VAES[name].build()
    assert clip_channels(vae.config) == TINY_VAES[name].channels


@pytest.mark.parametrize("how", ["default", "context"])
def test_a_default_device_of_meta(how):
    vae = TINY_VAES["Wan2.1"].build()
    expected = plan_memory(vae, 1, 32, 40, available=0)
    with torch.device("meta") if how == "context" else nullcontext():
        try:
            if how == "default":
                torch.set_default_device("meta")
            assert plan_memory(vae, 1, 32, 40, available=0) == expected
            with torch.no_grad(), swap(vae, tiling="auto", memory_budget=2**40):
                decoded = vae.decode(torch.ones(1, 2, 1, 4, 5, device="cpu")).sample
        finally:
            torch.set_default_device(None)
    assert decoded.device.type == "cpu"


def test_tensors_that_are_neither_parameters_nor_buffers():
    vae = TINY_VAES["Wan2.1"].build()
    expected = plan_memory(vae, 1, 32, 40, available=0)
    vae.decoder.kept = [torch.ones(3), {"scale": torch.ones(())}]
    assert plan_memory(vae, 1, 32, 40, available=0) == expected


@pytest.mark.parametrize("vae", [nn.Linear(1, 1), nn.Sequential(), 3], ids=lambda x: type(x).__name__)
def test_what_is_no_vae(vae):
    with pytest.raises(InvalidInput, match=rf"plan_memory: got a {type(vae).__name__}.*expected a"):
        plan_memory(vae, 1, 32, 40)


def test_a_vae_of_images():
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)
    with pytest.raises(InvalidInput, match="the model cannot encode an input of shape"):
        plan_memory(vae, 1, 32, 40)


def _group_offload(vae):
    vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def _accelerate(vae):
    pytest.importorskip("accelerate").cpu_offload(vae, execution_device="cpu")


HOOKS = {
    "group offload": _group_offload,
    "accelerate": _accelerate,
    "layerwise casting": lambda v: v.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_that_move_or_cast_weights(name):
    vae = TINY_VAES["Wan2.1"].build()
    HOOKS[name](vae)
    with pytest.raises(InvalidInput, match="may move or cast weights during the call; plan before"):
        plan_memory(vae, 1, 32, 40)


def _set_tiles(vae, ratio, size, stride):
    """Set tiles and the distance between them, in latents, by whatever attributes the class has."""
    values = {
        "tile_sample_min": size * ratio,
        "tile_latent_min": size,
        "tile_sample_stride": stride * ratio,
        "tile_overlap_factor": 1 - stride / size,
    }
    for name in vars(vae):
        for prefix, value in values.items():
            if name.startswith(prefix) and "num_frames" not in name:
                setattr(vae, name, type(getattr(vae, name))(value))


# Tiles and the distance between them, in latents: with gaps, with overlaps, odd, and larger than the picture.
TILES = [(2, 3), (3, 2), (2.4, 1.3), (40, 30)]
TILED_CASES = [
    (name, TILES[(i + j) % 4], step)
    for i, name in enumerate(TINY_VAES)
    for j, step in ((0, "decode"), (1, "encode" if i % 2 else "decode"))
]


@pytest.mark.costly("LTX0.9.5")
@pytest.mark.parametrize(("name", "tiles", "step"), TILED_CASES)
def test_a_plan_knows_whether_tiles_give_the_size_of_one_piece(name, tiles, step):
    tiny = TINY_VAES[name]
    vae = tiny.build()
    if not has_tiling(vae):
        pytest.skip("has no tiling")
    rule = frame_rule(vae)
    count = rule.nearest(1, below=False) + rule.lead_frames
    if count > 8:
        pytest.skip("takes long clips only, and so takes long")
    frames = torch.randn(1, tiny.channels, count, 5 * tiny.size, 4 * tiny.size)
    with torch.no_grad():
        shapes = {}
        try:
            latents = in_one_piece(vae).encode(frames).latent_dist.mode()
            x = latents if step == "decode" else frames
            shapes[False] = _made(in_one_piece(vae), step, x)
        except NotImplementedError:
            pytest.skip("runs in tiles only")
        _set_tiles(vae, frames.shape[3] // latents.shape[3], *tiles)
        try:
            shapes[True] = _made(in_tiles(vae), step, x)
        except (RuntimeError, ValueError):
            shapes[True] = "fails"
    plan = plan_step(vae, step, x.shape, available=0)
    assert (plan.tiled is not None) == (shapes[True] == shapes[False]), plan.tiled_unsupported_reason
    assert (plan.tiled is None) == (plan.tiled_unsupported_reason is not None)


def _made(vae, step, x):
    made = call(vae, step, x)
    return (made if isinstance(made, torch.Tensor) else made.mode()).shape


def test_it_prints_as_a_sentence_and_a_table():
    plan = plan_memory(TINY_VAES["Wan2.1"].build(), 9, 64, 64, available=2**40)
    first, *rows = str(plan).splitlines()
    assert first.startswith("AutoencoderKLWan, decode of 1x") and first.endswith("tiling can be left off")
    assert f"{plan.untiled / 2**20:,.1f}" in next(row for row in rows if "one piece" in row)
    assert len({len(row) for row in rows[1:]}) == 1


def test_a_pipeline_stands_for_its_vae():
    diffusers = pytest.importorskip("diffusers")
    vae = TINY_VAES["Wan2.1"].build()
    others = dict.fromkeys(("tokenizer", "text_encoder", "transformer", "scheduler"))
    pipeline = diffusers.WanPipeline(vae=vae, **others)
    handle = swap(pipeline)
    assert handle.model is vae and handle.active
    assert plan_memory(pipeline, 9, 64, 64, available=0) == plan_memory(vae, 9, 64, 64, available=0)
    restore(pipeline)
    assert not handle.active
