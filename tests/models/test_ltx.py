"""LTX-Video and LTX-2: what their swap has beyond the contract of `test_families.py`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.core import native
from causalvae_kernels.models.conv import Conv, convolve
from causalvae_kernels.models.swap import Link
from causalvae_kernels.parity import compare
from tests.support.copies import Copies
from tests.support.cover import pairs
from tests.support.models import assert_parity, in_float64, replaced_names
from tests.support.tiny_vaes import TINY_VAES

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
LTX_091 = {
    "timestep_conditioning": True,
    "decoder_block_out_channels": (8, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (True, False, True, False),
    "upsample_residual": (True, False, True),
    "upsample_factor": (2, 2, 2),
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Give the factors of the noise, which start as zeros, a value."""
    for name, parameter in model.named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.normal_(parameter)
    return model


def latents_of(model: Any, frames: int, batch: int = 1, size: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    shape = (batch, model.config.latent_channels, frames, size, size)
    return torch.randn(shape, generator=generator).to(model.dtype)


def decoded(model: Any, z: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Return the frames of latents; the noise is the same in every call."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model.decode(z, *args, **kwargs).sample


@pairs(name=["LTX0.9.0", "LTX2"], batch=[1, 2], dtype=[torch.float32, torch.bfloat16], backend=BACKENDS)
def test_timesteps_and_noise(name, batch, dtype, backend, monkeypatch):
    """A batch of one takes scale and shift into the norm; noise is drawn in the original's order."""
    config = LTX_091 if name == "LTX0.9.0" else {"timestep_conditioning": True, "decoder_inject_noise": True}
    model = randomised(TINY_VAES[name].build(**config)).to(dtype)
    z, temb = latents_of(model, 3, batch), torch.linspace(0.05, 0.3, batch).to(dtype)
    draw = torch.randn

    def noise(*args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
        return draw(*args, dtype=torch.float32, **kwargs).to(torch.bfloat16).to(dtype)

    monkeypatch.setattr(torch, "randn", noise)  # the same numbers in every dtype
    expected = decoded(model, z, temb)
    oracle = decoded(in_float64(model), z.double(), temb.double())
    with swap(model, backend=backend) as handle:
        assert all("resnets" in n for n in replaced_names(handle) if n.endswith("resnets.0"))
        got = decoded(model, z, temb)
    comparison = compare(got, expected, oracle, 8.0)
    assert comparison.passed, comparison


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["LTX0.9.0", "LTX0.9.5", "LTX2"])
def test_causal_or_not(name, causal, frames, backend):
    """LTX-2 hears it in every call, and reflects in space besides."""
    model = TINY_VAES[name].build(decoder_causal=causal)
    z, oracle = latents_of(model, frames, 2), in_float64(model)
    says = {"causal": causal} if name == "LTX2" else {}
    expected = decoded(model, z, **says)
    with swap(model, backend=backend):
        got = decoded(model, z, **says)
        if name == "LTX2" and not causal and frames > 1:
            assert not torch.allclose(decoded(model, z, causal=True), got, atol=1e-3)
    comparison = compare(got, expected, decoded(oracle, z.double(), **says), 8.0, 13.7)
    assert comparison.passed, comparison


@pytest.mark.parametrize("name", ["LTX0.9.5", "LTX2"])
def test_an_encoder_that_looks_ahead(name):
    """Its downsamplers run as they were: a doubled first frame is not convolved to two equal ones."""
    model = TINY_VAES[name].build(encoder_causal=False)
    other = copy.deepcopy(model)
    swap(other)
    clip = torch.rand(1, 3, 9, 16, 16)
    assert_parity(model, other, clip)


def test_any_number_of_frames_takes_what_the_model_takes():
    """Timesteps and the word for causality go on to the model, by position and by name."""
    model = randomised(TINY_VAES["LTX0.9.0"].build(**LTX_091))
    clip, temb = torch.rand(1, 3, 6, 8, 8), torch.tensor([0.1])
    with swap(model, frames="any") as handle, torch.no_grad():
        encoded = model.encode(clip)
        z = encoded.latent_dist.mode()
        whole = decoded(model, z, temb, num_frames=9)
        for args, kwargs in (((temb,), {}), ((), {"temb": temb}), ((temb, True), {})):
            got = decoded(model, z, *args, num_frames=encoded.num_frames, **kwargs)
            assert torch.equal(got, whole[:, :, :6])
        assert isinstance(model.decode(z, temb, False, num_frames=6), tuple)
        assert isinstance(model.encode(clip, return_dict=False), tuple)
        assert model(clip, temb).sample.shape == clip.shape
        with handle.num_frames(5):
            assert model.decode(z, temb, return_dict=False)[0].shape[2] == 5
    second = TINY_VAES["LTX2"].build()
    clip = torch.rand(1, 3, 6, 16, 16)
    with swap(second, frames="any"), torch.no_grad():
        assert second.encode(clip, True).latent_dist.num_frames == 6
        assert second(clip).sample.shape == clip.shape


@pairs(
    mode=["zeros", "reflect", "replicate"],
    frames=[1, 2, 5],
    layout=[torch.contiguous_format, torch.channels_last_3d],
    grad=[False, True],
    backend=BACKENDS,
)
def test_a_convolution_with_room_behind(mode, frames, layout, grad, backend):
    x = torch.randn(2, 3, frames, 4, 5).contiguous(memory_format=layout)
    weight = torch.randn(4, 3, 3, 3, 3, requires_grad=grad)
    padding = "constant" if mode == "zeros" else mode
    wide = torch.cat([x[:, :, :1], x, x[:, :, -1:]], dim=2)
    wide = torch.nn.functional.pad(wide, (1, 1, 1, 1, 0, 0), mode=padding)
    expected = torch.nn.functional.conv3d(wide, weight)
    conv = Conv(weight, spatial_mode=mode, tail_room=1)
    got, state = convolve(conv, Link("LTX", backend, None), x)
    assert state is None and torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    if grad:
        (g,) = torch.autograd.grad(got.square().sum(), weight)
        (e,) = torch.autograd.grad(expected.square().sum(), weight)
        assert torch.allclose(g, e, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="the copies are counted with our kernels")
@pytest.mark.parametrize("name", ["LTX0.9.0", "LTX0.9.5", "LTX2"])
def test_the_decoder_copies_what_it_shuffles_and_nothing_else(name):
    """Into the layout; residuals are shuffled, their channels repeated; a frame goes behind the last one."""
    model = TINY_VAES[name].build()
    z = latents_of(model, 3, size=4)
    with swap(model, backend="cpu"), torch.no_grad():
        model.decoder(z)
        with Copies(least=z[:, :, :1].numel()) as copies:
            model.decoder(z)
    upsamplers = [u for block in model.decoder.up_blocks for u in block.upsamplers or ()]
    residuals = sum(u.residual for u in upsamplers)
    # The frames behind the first ones are taken out; with a residual, as it is added.
    most = 1 + len(upsamplers) + 2 * residuals + (len(upsamplers) - residuals) + 1
    if name != "LTX2":  # looks ahead; latents, which nobody has written, are copied to have room around them
        convolutions = sum(type(m).__name__ == "LTXVideoCausalConv3d" for m in model.decoder.modules())
        most += convolutions - 1 + 3
    assert set(copies.found) <= {"copy_", "_to_copy", "clone"}, copies.found
    assert sum(copies.found.values()) <= most, (copies.found, most)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda conv: setattr(conv.conv, "padding_mode", "circular"), "padding_mode='circular'"),
        (lambda conv: setattr(conv.conv, "padding", (1, 1, 1)), "padding is"),
        (lambda conv: setattr(conv, "kernel_size", (1, 3, 3)), "the module pads for"),
        (lambda conv: setattr(conv.conv, "groups", 2), "groups=2"),
    ],
)
def test_a_changed_convolution_is_left(change, words):
    """Its rule does not run; what it computes is still recorded."""
    model = TINY_VAES["LTX0.9.0"].build()
    change(model.decoder.mid_block.resnets[0].conv1)
    with swap(model) as handle:
        left = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
    assert words in left["decoder.mid_block.resnets.0.conv1"]


def _changed_norms(name):
    model = TINY_VAES[name].build().double()
    block, changed = model.decoder.mid_block.resnets[0], {}
    if name == "LTX2":
        model.decoder.norm_out.channel_dim = 2
        changed["decoder.norm_out"] = "over dimension 2"
    else:
        block.norm2.weight = torch.nn.Parameter(torch.rand(4), requires_grad=False)
        changed["decoder.mid_block.resnets.0.norm2"] = "has a weight"
        block.conv1.is_causal = True
    return model, changed


@pytest.mark.parametrize("name", ["LTX0.9.0", "LTX2"])
def test_a_changed_norm_is_left(name):
    """Its rule does not run; the numbers are the model's. One convolution is causal, others are not."""
    model, changed = _changed_norms(name)
    z = latents_of(model, 3)
    expected = decoded(model, z)
    with swap(model, backend="aten") as handle:
        left = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
        assert all(words in left[n] for n, words in changed.items())
        torch.testing.assert_close(decoded(model, z), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.costly("LTX0.9.5", "Cosmos8x8x8")
@pytest.mark.parametrize("name", ["LTX0.9.0", "LTX0.9.5", "LTX2", "Mochi", "Cosmos8x8x8"])
def test_autocast_gives_the_models_dtypes(name):
    """What a model adds to the result of a convolution is of a higher dtype there, and so is the sum."""
    model, size = TINY_VAES[name].build(), TINY_VAES[name].size
    clip = torch.rand(8, 3, 9, size, size) * 2 - 1
    with torch.no_grad():
        oracle = in_float64(model)(clip.double()).sample

    def types() -> tuple[list[torch.dtype], torch.Tensor]:
        seen, hooks = [], []
        for module in model.modules():
            if type(module).__name__.endswith(("UpBlock3d", "DownBlock3D", "UpBlock3D", "DownBlock3d")):
                hooks.append(module.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype)))
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            frames = model(clip).sample
        for hook in hooks:
            hook.remove()
        return [*seen, frames.dtype], frames

    expected, frames = types()
    with swap(model):
        got, same = types()
    assert got == expected
    assert (same - oracle).norm() <= 2 * (frames - oracle).norm() < oracle.norm()


@pytest.mark.exhaustive
def test_real_widths():
    """Few layers and pixels, all channels."""
    import diffusers

    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    model = diffusers.AutoencoderKLLTXVideo(**layers).eval().requires_grad_(False)
    other = copy.deepcopy(model)
    swap(other)
    assert_parity(model, other, torch.rand(1, 3, 9, 32, 32) * 2 - 1)


@pytest.mark.exhaustive
def test_real_widths_of_later_decoders():
    """LTX-2 has the decoder's widths of 0.9.5."""
    real = {"decoder_block_out_channels": (256, 512, 1024), "latent_channels": 128, "patch_size": 4}
    model = TINY_VAES["LTX2"].build(**real, spatial_compression_ratio=32)
    z = latents_of(model, 2, size=2)
    expected, oracle = decoded(model, z), decoded(in_float64(model), z.double())
    with swap(model):
        got = decoded(model, z)
    comparison = compare(got, expected, oracle, 8.0, 13.7)
    assert comparison.passed, comparison
