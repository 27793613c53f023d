"""What the Hunyuan VAEs alone have: replicate padding, shuffles with shortcuts, whole coders."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from causalvae_kernels import swap
from causalvae_kernels.coder import CallStep, record
from causalvae_kernels.core import native
from causalvae_kernels.models.hunyuan_shuffle import shuffled_down, shuffled_up
from tests.support.cover import pairs, quick_rows
from tests.support.models import assert_parity, replaced_names
from tests.support.tiny_vaes import TINY_VAES, TinyVAE

diffusers = pytest.importorskip("diffusers")
from diffusers.models.autoencoders import (  # noqa: E402
    autoencoder_kl_hunyuanimage_refiner as refiner,
)
from diffusers.models.autoencoders import (  # noqa: E402
    autoencoder_kl_hunyuanvideo15 as video15,
)

NAMES = ("HunyuanVideo", "HunyuanVideo15", "HunyuanImageRefiner")
BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
NATIVE = pytest.mark.skipif(native.why_no_cpu() is not None, reason="no native CPU module")
# More channels than the tiny models have, and different ones, so that shortcuts repeat and average.
SMALL = {
    "HunyuanVideo": {
        "block_out_channels": (8, 16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
    },
    "HunyuanVideo15": {
        "block_out_channels": (8, 16, 32, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "spatial_compression_ratio": 8,
    },
}
SMALL["HunyuanImageRefiner"] = SMALL["HunyuanVideo15"]


def small(name: str, **overrides: object) -> nn.Module:
    """Return a fresh copy of a small model."""
    return TinyVAE(TINY_VAES[name].cls, SMALL[name]).build(**overrides)


# HunyuanVideo 1.5 changes channels in its samplers; so does the shortcut of a residual block then.
IN_BLOCKS = {"downsample_match_channel": False, "upsample_match_channel": False}


def latents_of(frames: int, height: int = 2, width: int = 3) -> Tensor:
    return torch.randn(1, 4, frames, height, width)


class Given(nn.Module):
    """Returns what it was given, whatever it is called with."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.y = y

    def forward(self, x: Tensor) -> Tensor:
        return self.y


UP = {
    "HunyuanVideo15": (video15.HunyuanVideo15Upsample, True),
    "HunyuanVideo15 in space": (video15.HunyuanVideo15Upsample, False),
    "refiner": (refiner.HunyuanImageRefinerUpsampleDCAE, True),
    "refiner in space": (refiner.HunyuanImageRefinerUpsampleDCAE, False),
}
DOWN = {
    "HunyuanVideo15": (video15.HunyuanVideo15Downsample, True),
    "HunyuanVideo15 in space": (video15.HunyuanVideo15Downsample, False),
    "refiner": (refiner.HunyuanImageRefinerDownsampleDCAE, True),
    "refiner in space": (refiner.HunyuanImageRefinerDownsampleDCAE, False),
}
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def split(kind: str, temporal: bool, frames: int) -> tuple[int, int]:
    """Return how many frames are single, and what the others are multiplied or divided by."""
    if kind.startswith("refiner"):
        return (frames if temporal else 0), 1
    return (1, 2) if temporal else (0, 1)


@pairs(
    kind=UP,
    channels=[(8, 8), (16, 8), (8, 16), (32, 8)],
    frames=[1, 2, 5],
    dtype=[torch.float32, torch.bfloat16],
    layout=LAYOUTS,
)
def test_shuffle_up_gives_the_bits_of_the_model(kind, channels, frames, dtype, layout):
    cls, temporal = UP[kind]
    module, factor = cls(*channels, add_temporal_upsample=temporal), 8 if temporal else 4
    if factor * channels[1] % channels[0]:
        pytest.skip("no whole number of repetitions")
    x = torch.randn(2, channels[0], frames, 3, 4, dtype=dtype).contiguous(memory_format=layout)
    h = torch.randn(2, factor * channels[1], frames, 3, 4, dtype=dtype).contiguous(memory_format=layout)
    module.conv = Given(h)
    got = shuffled_up(h, x, channels[1], *split(kind, temporal, frames))
    assert torch.equal(got, module(x))
    assert got.is_contiguous(memory_format=layout)


@pairs(
    kind=DOWN,
    channels=[(8, 8), (16, 8), (8, 16), (8, 32)],
    frames=[1, 3, 5],
    dtype=[torch.float32, torch.bfloat16],
    layout=LAYOUTS,
)
def test_shuffle_down_gives_the_bits_of_the_model(kind, channels, frames, dtype, layout):
    cls, temporal = DOWN[kind]
    module, factor = cls(*channels, add_temporal_downsample=temporal), 8 if temporal else 4
    # Of such numbers every sum is exact, in whatever order; a mean must still be rounded in bfloat16.
    x = (torch.randint(-255, 256, (2, channels[0], frames, 6, 4)) / 16).to(dtype)
    x = x.contiguous(memory_format=layout)
    h = torch.randn(2, channels[1] // factor, frames, 6, 4, dtype=dtype).contiguous(memory_format=layout)
    module.conv = Given(h)
    got, expected = shuffled_down(h, x, channels[1], *split(kind, temporal, frames)), module(x)
    assert torch.equal(got, expected)
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("name", "in_blocks"), [*((name, False) for name in NAMES), *((name, True) for name in NAMES[1:])]
)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    # without a bfloat16 of its own the processor takes seconds for the framework's convolutions
    quick_rows(
        list(product(BACKENDS, [torch.float32, torch.bfloat16])),
        [("aten", torch.float32), ("cpu", torch.float32)],
    ),
)
def test_parity_with_channels_that_change(name, in_blocks, backend, dtype):
    vae = small(name, **(IN_BLOCKS if in_blocks else {})).to(dtype)
    other = copy.deepcopy(vae)
    swap(other, backend=backend)
    assert_parity(vae, other, (torch.rand(1, 3, 9, 24, 40) * 2 - 1).to(dtype))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 3), (3, 3, 1), (2, 1, 1)])
def test_decode_of_frames_of_one_pixel(name, size):
    vae, latents = small(name), latents_of(*size)
    with torch.no_grad():
        expected = vae.decode(latents).sample
        with swap(vae):
            got = vae.decode(latents).sample
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_strided_inputs(name):
    """The result is laid out as the weights are, whatever comes in."""
    vae = small(name)
    clip = torch.rand(1, 3, 5, 16, 48)[..., ::2]
    with torch.no_grad():
        expected = vae.encode(clip).latent_dist.mode()
        with swap(vae):
            for given in (clip, clip.contiguous(memory_format=torch.channels_last_3d)):
                got = vae.encode(given).latent_dist.mode()
                assert torch.allclose(got, expected, atol=1e-4)
                assert vae.encoder(given).is_contiguous()


WIDE = {
    "HunyuanVideo": {"layers_per_block": 1},
    # A whole model with the inner widths has 1.2e9 parameters.
    "HunyuanVideo15": {
        "block_out_channels": (128, 256, 512),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "temporal_compression_ratio": 2,
    },
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WIDE)
def test_parity_with_real_widths(name):
    vae = TinyVAE(TINY_VAES[name].cls, WIDE[name]).build()
    other = copy.deepcopy(vae)
    swap(other, backend=BACKENDS[-1])
    assert_parity(vae, other, torch.rand(1, 3, 5, 16, 16) * 2 - 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_replaced(name):
    handle = swap(small(name))
    kinds = {entry.type_name for entry in handle.report if entry.replaced}
    left = {entry.type_name for entry in handle.report if not entry.replaced}
    if name == "HunyuanVideo":
        parts = ("CausalConv3d", "UpsampleCausal3D", "DownsampleCausal3D")
        assert left == {"GroupNorm", "Conv3d", "Linear"}
    else:
        dcae = "DCAE" if name == "HunyuanImageRefiner" else ""
        parts = ("CausalConv3d", f"Upsample{dcae}", f"Downsample{dcae}", "RMS_norm")
        assert left == {"Conv3d"}
    resnet = "ResnetBlockCausal3D" if name == "HunyuanVideo" else "ResnetBlock"
    attention = {"HunyuanVideo": ("MidBlock3D",), "HunyuanVideo15": ("AttnBlock",)}.get(name, ())
    coders = ("Encoder3D", "Decoder3D", "DownBlock3D", "UpBlock3D", resnet)
    assert kinds == {f"{name}{part}" for part in (*parts, *coders, *attention)}


@pytest.mark.parametrize("name", NAMES[:2])  # the refiner's attention sees all frames
@pytest.mark.parametrize("hooked", [False, True])
def test_a_coder_whose_mask_would_be_too_large(name, hooked, monkeypatch):
    """There is none, unless the attention is hooked: then each block is recorded."""
    monkeypatch.setattr(record, "_SMALL", 64)
    vae = small(name)
    other = copy.deepcopy(vae)
    if hooked:
        for half in (other.encoder, other.decoder):
            half.mid_block.attentions[0].register_forward_hook(lambda *_: None)
    handle = swap(other)
    assert_parity(vae, other, torch.rand(1, 3, 9, 16, 24))
    read = [known.schedule is not None for known in handle._link.coders.known.values()]
    assert sum(read) > 8 if hooked else all(read)
    assert all(read) != hooked


@NATIVE
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coder", ["encoder", "decoder"])
def test_a_coder_is_ops_and_shuffles(name, coder):
    """Nothing else is called: no sum, no norm, no activation, nothing that is upsampled or put together."""
    vae = small(name)
    getattr(vae, coder).mid_block.attentions = nn.ModuleList([None])
    handle = swap(vae, backend="cpu")
    x = torch.randn(1, 3, 9, 16, 24) if coder == "encoder" else latents_of(3)
    with torch.no_grad():
        getattr(vae, coder)(x)
    (known,) = handle._link.coders.known.values()
    called = [p.step for p in known.schedule.planned if isinstance(p.step, CallStep)]
    shortcuts = 0 if name == "HunyuanVideo" else 1  # of the coder itself
    shuffles = 0 if name == "HunyuanVideo" else 3
    assert len(called) <= shuffles + 4 * shortcuts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_the_caller_holds_is_not_overwritten(name, backend, dtype):
    vae, latents = small(name).to(dtype), latents_of(2).to(dtype)
    clip = torch.rand(1, 3, 5, 16, 16, dtype=dtype)
    with torch.no_grad(), swap(vae, backend=backend):
        held = [latents, clip, vae.decoder(latents), vae.encoder(clip)]
        before = [t.clone() for t in held]
        vae.decoder(latents)
        vae.encoder(clip)
        assert all(torch.equal(a, b) for a, b in zip(held, before, strict=True))


PROBED = [
    "conv_in",
    "mid_block",
    "mid_block.resnets.0",
    "mid_block.resnets.0.norm1",
    "mid_block.attentions.0",
    "mid_block.resnets.1.conv2",
    "up_blocks.2.resnets.0.conv_shortcut",
    "up_blocks.0.resnets.0",
    "up_blocks.1.resnets.1.norm2",
    "up_blocks.0.upsamplers.0",
    "up_blocks.1.upsamplers.0.conv",
    "conv_act",
]


@pytest.mark.costly
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("probed", PROBED)
def test_what_a_hook_keeps_is_not_overwritten(name, probed):
    """A probe on any module sees what the unmodified model gives there, also after the run."""
    latents, seen = latents_of(2), []

    def keep(module, arguments, output):
        seen[-1].extend((arguments[0], output))

    for swapped in (False, True):
        seen.append([])
        vae = small(name, **(IN_BLOCKS if name != "HunyuanVideo" else {}))
        if swapped:
            swap(vae)
        vae.decoder.get_submodule(probed).register_forward_hook(keep)
        with torch.no_grad():
            vae.decoder(latents)
    assert seen[0]
    for expected, got in zip(*seen, strict=True):
        assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    vae, latents = small(name), latents_of(2)
    clip = torch.rand(1, 3, 5, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = vae.decoder(latents), vae.encoder(clip)
        with swap(vae):
            got = vae.decoder(latents), vae.encoder(clip)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= 0.1 * b.abs().max()


def test_dropout_in_training_mode():
    vae = small("HunyuanVideo").train()
    block, x = vae.decoder.up_blocks[2].resnets[0], torch.randn(1, 32, 2, 4, 4)
    block.dropout.p = 0.5
    torch.manual_seed(3)
    expected = block(x)
    with swap(vae):
        torch.manual_seed(3)
        got = block(x)
        assert torch.allclose(got, expected, atol=1e-5)
        torch.manual_seed(3)
        whole = vae.decoder(latents_of(2))
    assert not torch.allclose(got, block.eval()(x), atol=1e-2)
    assert whole.isfinite().all()


def _zeros(module: nn.Module) -> None:
    module.decoder.conv_in.pad_mode = "constant"


def _padded(module: nn.Module) -> None:
    module.decoder.conv_in.conv.padding = (1, 1, 1)


def _flat(module: nn.Module) -> None:
    """A kernel that is no cube: the class pads width by the kernel's frames."""
    found = module.decoder.conv_in
    module.decoder.conv_in = type(found)(4, found.conv.out_channels, kernel_size=(1, 3, 3))


def _gamma(module: nn.Module) -> None:
    module.decoder.up_blocks[0].resnets[0].norm1.channel_first = False


def _scale(module: nn.Module) -> None:
    module.decoder.up_blocks[0].resnets[0].norm1.scale = 1.0


def _activation(module: nn.Module) -> None:
    module.decoder.up_blocks[0].resnets[0].nonlinearity = nn.GELU()


def _repeats(module: nn.Module) -> None:
    module.decoder.up_blocks[0].upsamplers[0].repeats = 1


def _groups(module: nn.Module) -> None:
    module.encoder.down_blocks[0].downsamplers[0].group_size = 3


def _factor(module: nn.Module) -> None:
    module.decoder.up_blocks[0].upsamplers[0].upsample_factor = (1, 3, 3)


def _upsampling_stride(module: nn.Module) -> None:
    module.decoder.up_blocks[0].upsamplers[0].conv.conv.stride = (1, 2, 2)


CHANGES = [
    ("HunyuanVideo", _zeros, "decoder.conv_in", "pad_mode"),
    ("HunyuanVideo15", _padded, "decoder.conv_in", "padding is"),
    ("HunyuanImageRefiner", _flat, "decoder.conv_in", "it pads by"),
    ("HunyuanVideo15", _gamma, "decoder.up_blocks.0.resnets.0.norm1", "its gamma"),
    ("HunyuanImageRefiner", _scale, "decoder.up_blocks.0.resnets.0.norm1", "its scale"),
    ("HunyuanVideo15", _repeats, "decoder.up_blocks.0.upsamplers.0", "whole repetitions"),
    ("HunyuanImageRefiner", _groups, "encoder.down_blocks.0.downsamplers.0", "whole groups"),
    ("HunyuanVideo", _factor, "decoder.up_blocks.0.upsamplers.0", "upsample_factor is"),
    ("HunyuanVideo", _upsampling_stride, "decoder.up_blocks.0.upsamplers.0", "without a stride"),
    ("HunyuanVideo15", _upsampling_stride, "decoder.up_blocks.0.upsamplers.0", "keeps the resolution"),
]


@pytest.mark.parametrize(("name", "change", "path", "reason"), CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_configuration_that_no_rule_fits(name, change, path, reason, when):
    vae = small(name)
    if when == "after":
        handle = swap(vae)
        change(vae)
        handle.refresh()
    else:
        change(vae)
        handle = swap(vae)
    entry = next(e for e in handle.report if e.name == path)
    assert not entry.replaced and reason in entry.reason
    assert "decoder.conv_out" in replaced_names(handle)


def test_an_upsampler_in_space_whose_channels_are_no_multiple_of_eight():
    """Its shortcut repeats fours."""
    vae = small("HunyuanVideo15")
    module = video15.HunyuanVideo15Upsample(12, 12, add_temporal_upsample=False).eval().requires_grad_(False)
    vae.decoder.up_blocks[0].upsamplers[0] = module
    x = torch.randn(1, 12, 3, 4, 6)
    expected = module(x)
    with swap(vae, backend="aten") as handle:
        assert "decoder.up_blocks.0.upsamplers.0" in replaced_names(handle)
        assert torch.allclose(module(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "change"),
    [("HunyuanVideo", _zeros), ("HunyuanImageRefiner", _scale), ("HunyuanVideo", _activation)],
)
def test_a_module_that_is_left_computes_as_it_did(name, change):
    vae, latents = small(name), latents_of(2)
    change(vae)
    with torch.no_grad():
        expected = vae.decoder(latents)
        with swap(vae):
            got = vae.decoder(latents)
    assert torch.allclose(got, expected, atol=1e-4 * expected.abs().max())


def test_a_block_of_another_class_runs_as_it_is():
    class Skip(nn.Module):
        def forward(self, hidden_states: Tensor) -> Tensor:
            return 2 * hidden_states

    for name in NAMES:
        vae, latents = small(name), latents_of(2)
        vae.decoder.mid_block = Skip()
        with torch.no_grad():
            expected = vae.decoder(latents)
            with swap(vae):
                assert torch.allclose(vae.decoder(latents), expected, atol=1e-4)


def test_activations_far_from_zero_lose_no_digits():
    """In channels last the framework's norm would: a norm that runs through it takes a copy."""
    vae = small("HunyuanVideo")
    with torch.no_grad():
        vae.encoder.conv_in.conv.bias.fill_(3.0)
        vae.encoder.conv_in.conv.weight.mul_(0.1)
    other = copy.deepcopy(vae)
    swap(other)
    clip = torch.rand(1, 3, 5, 16, 16)
    assert_parity(vae, other, clip)
    probed = copy.deepcopy(vae)
    swap(probed)
    # With the blocks' norms hooked, each module runs by its own rule.
    for module in probed.modules():
        if isinstance(module, nn.GroupNorm):
            module.register_forward_hook(lambda *_: None)
    assert_parity(vae, probed, clip.contiguous(memory_format=torch.channels_last_3d))


def test_windows_in_time_stay_those_of_the_user():
    """More frames than a window holds are decoded in overlapping windows, or in one piece, as it was set."""
    vae, other = small("HunyuanVideo"), small("HunyuanVideo")
    swap(other)
    clip = torch.rand(1, 3, 29, 16, 16)
    assert_parity(vae, other, clip)
    latents = latents_of(8)
    windowed = other.decode(latents).sample

    def in_one_piece(model: nn.Module) -> None:
        model.use_framewise_encoding = model.use_framewise_decoding = False

    in_one_piece(vae)
    in_one_piece(other)
    assert_parity(vae, other, clip, in_one_piece)
    whole = other.decode(latents).sample
    assert whole.shape == windowed.shape and not torch.equal(whole, windowed)


@pytest.mark.exhaustive
def test_a_decoder_in_training_compiles_to_one_graph():
    vae = TINY_VAES["HunyuanVideo"].build().train().requires_grad_(True)
    latents = torch.randn(1, 2, 2, 2, 2)
    with swap(vae):
        expected = vae.decoder(latents)
        got = torch.compile(vae.decoder, backend="aot_eager", fullgraph=True)(latents)
        got.sum().backward()
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert all(p.grad is not None for p in vae.decoder.parameters())
