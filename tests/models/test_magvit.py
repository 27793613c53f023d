"""What `AutoencoderKLMagvit` alone has: a cache in its modules, which stays where it was."""

from __future__ import annotations

import copy

import pytest
import torch

from causalvae_kernels import swap
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core import native
from causalvae_kernels.parity import round_trip
from tests.support.models import assert_parity, replaced_names
from tests.support.tiny_vaes import TINY_VAES

TINY = TINY_VAES["Magvit(EasyAnimate)"]
CONV = "EasyAnimateCausalConv3d"


def _states(vae):
    return {n: m.prev_features for n, m in vae.named_modules() if type(m).__name__ == CONV}


@pytest.mark.parametrize("chunks", [(1, 4, 4), (5, 4), (4, 8), (3,)])
@pytest.mark.parametrize("backend", ["aten", "cpu"])
@torch.no_grad()
def test_chunk_by_chunk_every_module_keeps_what_it_kept(backend, chunks):
    plain, vae = TINY.build(), TINY.build()
    swap(vae, backend=backend)
    for frames in chunks:
        chunk = torch.randn(2, 3, frames, 16, 24)
        expected, got = plain.encoder(chunk), vae.encoder(chunk)
        assert torch.allclose(got, expected, atol=1e-5)
        for name, state in _states(plain).items():
            ours = _states(vae)[name]
            assert (state is None) == (ours is None)
            assert state is None or torch.allclose(ours, state, atol=1e-5), name


@torch.no_grad()
def test_swapped_in_the_middle_of_a_clip():
    plain, vae = TINY.build(), TINY.build()
    parts = [torch.randn(1, 3, frames, 16, 16) for frames in (1, 4, 4)]
    expected = [plain.encoder(part) for part in parts]
    got = [vae.encoder(parts[0])]
    with swap(vae, backend="aten"):
        got.append(vae.encoder(parts[1]))
    got.append(vae.encoder(parts[2]))
    assert torch.allclose(torch.cat(got, 2), torch.cat(expected, 2), atol=1e-5)


@torch.no_grad()
def test_a_call_that_fails_leaves_the_state_of_the_module():
    vae = TINY.build()
    swap(vae, backend="aten")
    conv = vae.encoder.conv_in
    with pytest.raises(Exception, match="channels"):
        conv(torch.randn(1, 2, 4, 8, 8))
    assert conv.prev_features is None
    conv(torch.randn(1, 3, 4, 8, 8))
    before = conv.prev_features.clone()
    for wrong in (torch.randn(1, 3, 4, 9, 8), torch.randn(1, 2, 4, 8, 8), torch.randn(2, 3, 4, 8, 8)):
        with pytest.raises(Exception, match=r".+"):
            conv(wrong)
        assert torch.equal(conv.prev_features, before)


@pytest.mark.parametrize("frames", [1, 5])
def test_norms_over_all_frames(frames):
    reference = TINY.build(spatial_group_norm=False)
    vae = copy.deepcopy(reference)
    swap(vae, backend="aten")
    assert_parity(reference, vae, TINY.video(frames))


@pytest.mark.parametrize("frame_by_frame", [False, True])
@torch.no_grad()
def test_a_norm_of_another_class_is_called(frame_by_frame):
    plain = TINY.build(spatial_group_norm=frame_by_frame)
    norm = torch.nn.BatchNorm2d(4) if frame_by_frame else torch.nn.Identity()
    plain.encoder.mid_block.convs[0].norm1 = norm
    vae, x = copy.deepcopy(plain).eval(), torch.randn(1, 4, 3, 6, 8)
    swap(vae, backend="aten")
    blocks = [model.encoder.mid_block.convs[0].eval() for model in (plain, vae)]
    assert torch.allclose(blocks[1](x), blocks[0](x), atol=1e-5)


@pytest.mark.skipif(native.why_no_cpu() is not None, reason="needs the native module")
@pytest.mark.parametrize("frame_by_frame", [False, True])
@torch.no_grad()
def test_two_activations_in_a_block(frame_by_frame):
    """Besides its input and the frames that it keeps: what a convolution reads, and what it writes."""
    vae = TINY.build(block_out_channels=(32,) * 4, spatial_group_norm=frame_by_frame)
    block, x = vae.encoder.mid_block.convs[0], torch.randn(1, 32, 8, 24, 24)
    with swap(vae, backend="cpu"):
        block(x)
        block.conv1.prev_features = block.conv2.prev_features = None
        kept = 2 * x[:, :, :2].nbytes
        assert peak_allocated(lambda: block(x)) <= 2.25 * x.nbytes + kept


@torch.no_grad()
def test_a_factor_behind_the_sum():
    reference = TINY.build()
    for module in reference.modules():
        if hasattr(module, "output_scale_factor"):
            module.output_scale_factor = 2.0
    vae = copy.deepcopy(reference)
    swap(vae, backend="aten")
    assert_parity(reference, vae, TINY.video(5))


def test_dropout_draws_what_it_drew():
    plain = TINY.build().train()
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    vae = copy.deepcopy(plain)
    swap(vae, backend="aten")
    frames = []
    for model in (plain, vae):
        torch.manual_seed(3)
        frames.append(model(TINY.video(5)).sample)
    assert torch.allclose(*frames, atol=1e-4)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("encoder.conv_in", {"temporal_padding": 1}, "with 1 frames of padding"),
        ("encoder.conv_in", {"padding": (0, 2, 2)}, "padding is"),
        ("encoder.conv_in", {"groups": 2}, "groups=2"),
        ("encoder.mid_block.convs.0.conv2", {"dilation": (1, 2, 2)}, "dilation"),
        ("encoder.mid_block.convs.0.conv1", {"t_stride": 2, "stride": (2, 1, 1)}, "stride in time"),
        ("quant_conv", {"stride": (2, 1, 1)}, "pointwise"),
    ],
)
def test_what_is_left_and_why(path, change, words):
    vae = TINY.build()
    module = vae.get_submodule(path)
    vars(module).update(change)
    with swap(vae) as handle:
        left = {entry.name: entry.reason for entry in handle.report if not entry.replaced}
        names = {path, path.rpartition(".")[0]}
        assert any(words in left.get(name, "") for name in names), left


def test_checkpointing_fails_in_diffusers_own_model():
    vae = TINY.build().train().requires_grad_(True)
    vae.enable_gradient_checkpointing()
    with pytest.raises(Exception, match="checkpoint"):
        vae(TINY.video(5)).sample.sum().backward()


@pytest.mark.exhaustive
@torch.no_grad()
def test_real_widths():
    config = {"layers_per_block": 1, "block_out_channels": (128, 256, 512, 512), "latent_channels": 4}
    reference = TINY.build(**config, norm_num_groups=32)
    vae = copy.deepcopy(reference)
    with swap(vae, backend="aten") as handle:
        assert_parity(reference, vae, TINY.video(5))
        assert len(replaced_names(handle)) > 20
        assert round_trip(vae, TINY.video(5))[1].shape[2] == 5
