"""Mochi and Cosmos: what their swaps have beyond the contract of `test_families.py`."""

from __future__ import annotations

import copy

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.core import native
from causalvae_kernels.parity import compare
from tests.support.copies import Copies
from tests.support.cover import pairs
from tests.support.models import assert_parity
from tests.support.tiny_vaes import TINY_VAES

BACKENDS = ["aten"] + (["cpu"] if native.why_no_cpu() is None else [])
needs_our_norms = pytest.mark.skipif(
    native.why_no_cpu() is not None, reason="the framework's norms lose digits in channels last"
)


def left_in(model: torch.nn.Module) -> dict[str, str]:
    """Return the reasons of the modules that a swap leaves."""
    with swap(model) as handle:
        return {entry.name: entry.reason for entry in handle.report if not entry.replaced}


@needs_our_norms
@pytest.mark.parametrize("name", ["Mochi", "Cosmos8x8x8"])
def test_the_decoder_neither_pads_nor_concatenates(name):
    model = TINY_VAES[name].build()
    model = model.to(torch.float32)
    z = torch.randn(1, model.config.latent_channels, 2, 4, 4)
    decoder = model.decoder
    if name == "Cosmos8x8x8":  # its wavelets are left alone
        decoder.unpatch_embed.forward = lambda x: x
    with swap(model, backend="cpu"), torch.no_grad():
        decoder(z)
        with Copies(least=z[:, :, :1].numel()) as copies:
            decoder(z)
    # Mochi: the layout, and a shuffle per block. Cosmos: the layout and back, doubled frames, attention.
    assert copies.found["constant_pad_nd"] == copies.found["cat"] == copies.found["repeat"] == 0, copies.found
    if name == "Mochi":
        assert sum(copies.found.values()) <= 1 + len(decoder.up_blocks), copies.found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("space", [2, 3])
def test_mochis_patches_are_channels_of_one_pixel(frames, space, backend):
    """Convolutions whose kernel is as large as their stride; rows that fill no patch are dropped."""
    model = TINY_VAES["Mochi"].build()
    for block in model.encoder.down_blocks:
        patches = block.conv_in
        x = torch.randn(2, 32, frames, 4 + (space == 3), 6)
        with torch.no_grad():
            # One draw of the worst rounding error may be a lucky one: the same sums in two orders.
            turned = copy.deepcopy(patches)
            turned.conv.weight.copy_(turned.conv.weight.flip(1))
            expected = [patches(x)[0], turned(x.flip(1))[0]]
            with swap(model, backend=backend) as handle:
                assert any(e.replaced and e.type_name == "CogVideoXCausalConv3d" for e in handle.report)
                got, cache = patches(x)
        assert cache is None
        comparison = compare(got, expected, copy.deepcopy(patches).double()(x.double())[0])
        assert comparison.passed, comparison


def test_mochi_frame_by_frame_is_left():
    """diffusers switches the padding over, and the convolutions were not built for it."""
    model = TINY_VAES["Mochi"].build()
    model._enable_framewise_decoding()
    assert "pad_mode is 'constant'" in left_in(model)["decoder.block_in.resnets.0.conv1"]
    model = TINY_VAES["Mochi"].build()
    model.encoder.down_blocks[0].conv_in.conv.groups = 2
    assert "without padding" in left_in(model)["encoder.down_blocks.0.conv_in"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pad_mode", ["constant", "replicate", "reflect"])
def test_cosmos_groups_and_padding(pad_mode, groups, backend):
    """One group is a frame's, several are the clip's; and what the class offers beyond the model's needs."""
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos

    torch.manual_seed(0)
    model = TINY_VAES["Cosmos8x8x8"].build()
    block = cosmos.CosmosResnetBlock3d(4, 6, num_groups=groups).eval().requires_grad_(False)
    model.decoder.up_blocks[0].resnets[0] = block
    for convolution in (block.conv1.conv_s, block.conv2.conv_s):
        convolution.pad_mode = pad_mode
    x = torch.randn(2, 4, 5, 6, 7)
    expected = block(x)
    with swap(model, backend=backend) as handle:
        assert {e.name: e.replaced for e in handle.report}["decoder.up_blocks.0.resnets.0"]
        got = block(x)
    comparison = compare(got, expected, copy.deepcopy(block).double()(x.double()), 8.0, 13.7)
    assert comparison.passed, comparison


def test_dropout_of_cosmos_drops():
    """All of it: which part it draws depends on the layout that it sees."""
    model = TINY_VAES["Cosmos8x8x8"].build()
    block, x = model.decoder.up_blocks[0].resnets[0], torch.randn(1, 4, 3, 6, 8)
    evaluated = block(x)
    block.train().dropout.p = 1.0
    expected = block(x)
    with swap(model, backend="aten") as handle:
        assert {e.name: e.replaced for e in handle.report}["decoder.up_blocks.0.resnets.0"]
        assert torch.allclose(block(x), expected, atol=1e-5)
    assert not torch.allclose(evaluated, expected, atol=1e-2)


@pairs(
    frames=[1, 2, 3, 4, 5],
    halves=[(True, True), (True, False), (False, True), (False, False)],
    layout=[torch.contiguous_format, torch.channels_last_3d],
    grad=[False, True],
    backend=BACKENDS,
)
def test_cosmos_changes_of_resolution(halves, frames, layout, grad, backend):
    spatial, temporal = halves
    from diffusers.models.autoencoders import autoencoder_kl_cosmos as cosmos

    model = TINY_VAES["Cosmos8x8x8"].build()
    down = cosmos.CosmosDownsample3d(4, spatial, temporal).requires_grad_(grad)
    up = cosmos.CosmosUpsample3d(4, spatial, temporal).requires_grad_(grad)
    model.encoder.down_blocks[0].downsamplers[0] = down
    model.decoder.up_blocks[0].upsamplers = torch.nn.ModuleList([up])
    x = torch.randn(2, 4, frames, 6, 8).contiguous(memory_format=layout)
    for module in (down, up):
        expected, oracle = module(x), copy.deepcopy(module).double()(x.double())
        with swap(model, backend=backend) as handle:
            assert "Cosmos" in str(handle.report)
            got = module(x)
        comparison = compare(got, expected, oracle, 8.0, 13.7)
        assert comparison.passed, (type(module).__name__, comparison)
        assert got.requires_grad == expected.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_changed_convolution_of_cosmos(backend):
    """A rule that does not fit is left; its numbers are recorded, whatever they are."""
    model = TINY_VAES["Cosmos8x8x8"].build()
    assert left_in(model) == {
        "encoder.down_blocks.0.downsamplers.0.conv2": "it pads 1 frames, expected 2; a downsampler runs it"
    }
    first, z = model.decoder.conv_in.conv_s, torch.randn(1, 4, 3, 3, 4)
    for change, words in (
        ({"pad_mode": "circular"}, "pad_mode is 'circular'"),
        ({"pad_mode": "constant", "spatial_pad": (2, 2, 2, 2)}, "pixels"),
        ({"dilation": (1, 2, 2)}, "without dilation"),
    ):
        for key, value in change.items():
            setattr(first, key, value)
        assert words in left_in(model)["decoder.conv_in.conv_s"]
        expected, oracle = model.decode(z).sample, copy.deepcopy(model).double().decode(z.double()).sample
        with swap(model, backend=backend):
            comparison = compare(model.decode(z).sample, expected, oracle, 8.0, 13.7)
        assert comparison.passed, comparison


def test_odd_frames_are_cosmos_own():
    """diffusers cannot halve an odd height; the swap says so in its words."""
    model = TINY_VAES["Cosmos8x8x8"].build()
    with swap(model), pytest.raises(RuntimeError, match="size of tensor"):
        model.encode(torch.rand(1, 3, 9, 20, 20))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["Mochi", "Cosmos"])
def test_real_widths(name):
    """Few layers and pixels, all channels."""
    import diffusers

    if name == "Mochi":
        model = diffusers.AutoencoderKLMochi(layers_per_block=(1, 1, 1, 1, 1))
        clip = torch.rand(1, 3, 7, 16, 24) * 2 - 1
    else:
        model = diffusers.AutoencoderKLCosmos(num_layers=1)
        clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    model = model.eval().requires_grad_(False)
    other = copy.deepcopy(model)
    swap(other)
    assert_parity(model, other, clip)
