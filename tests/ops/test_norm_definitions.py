"""The norm ops are what the modules of diffusers compute, and what their formulas say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels import (
    BackendUnavailable,
    FrameBuffer,
    InvalidInput,
    explain,
    group_norm,
    rms_norm,
    spatial_norm,
)
from causalvae_kernels.ops.group_norm import spec as group_spec
from causalvae_kernels.ops.rms_norm import spec as rms_spec
from causalvae_kernels.ops.spatial_norm import spec as spatial_spec
from causalvae_kernels.ops.spatial_norm.spec import repeats


def test_group_norm_is_its_formula(seed):
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    weight, bias = torch.randn(2, 6, dtype=torch.float64)
    expected = torch.empty_like(x)
    for b in range(2):
        for g in range(3):
            group = x[b, 2 * g : 2 * g + 2]
            mean = group.sum() / group.numel()
            variance = ((group - mean) ** 2).sum() / group.numel()
            expected[b, 2 * g : 2 * g + 2] = (group - mean) / (variance + 1e-3).sqrt()
    expected = expected * weight.view(-1, 1, 1, 1) + bias.view(-1, 1, 1, 1)
    got = group_norm(x, 3, weight, bias, eps=1e-3, activation=None, backend="reference")
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)
    got = group_norm(x, 3, weight, bias, eps=1e-3, backend="reference")
    assert torch.allclose(got, expected / (1 + torch.exp(-expected)), rtol=0, atol=1e-12)


SIZES = {
    "first chunk": ((9, 8, 12), (3, 2, 3)),
    "later chunk": ((8, 8, 12), (2, 2, 3)),
    "one frame": ((1, 8, 12), (1, 2, 3)),
    "same size": ((3, 4, 6), (3, 4, 6)),
    "doubled, odd": ((5, 4, 6), (3, 4, 6)),
    "uneven": ((5, 7, 10), (2, 3, 4)),
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_spatial_norm_is_that_of_diffusers(size, dtype, seed):
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_cogvideox")
    torch.manual_seed(seed)
    norm = module.CogVideoXSpatialNorm3D(16, 4, groups=4).to(dtype)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    f, zq = torch.randn(2, 16, *size[0]).to(dtype), torch.randn(2, 4, *size[1]).to(dtype)
    with torch.no_grad():
        expected, _ = norm(f, zq)
        # At full resolution the convolutions see the very same numbers; the norm repeats nothing then.
        wide = torch.cat(
            [F.interpolate(z, size=(t, *size[0][1:])) for z, t in _pieces(zq, size[0][0])], dim=2
        )
        large = [conv(wide)[0] for conv in (norm.conv_y, norm.conv_b)]
        small = [conv(zq)[0] for conv in (norm.conv_y, norm.conv_b)]
    gn = norm.norm_layer
    parameters = (gn.num_groups, gn.weight.detach(), gn.bias.detach())
    got = spatial_norm(f, *large, *parameters, eps=gn.eps, activation=None, backend="reference")
    assert torch.equal(got, expected)
    got = spatial_norm(f, *small, *parameters, eps=gn.eps, activation=None, backend="reference")
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    assert torch.allclose(got.float(), expected.float(), rtol=tolerance, atol=tolerance)


def _pieces(zq, frames):
    if frames > 1 and frames % 2:
        return (zq[:, :, :1], 1), (zq[:, :, 1:], frames - 1)
    return ((zq, frames),)


@pytest.mark.parametrize("images", [False, True], ids=["videos", "images"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_rms_norm_is_that_of_diffusers_to_the_bit(images, bias, dtype, seed):
    module = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    torch.manual_seed(seed)
    norm = module.WanRMS_norm(24, images=images, bias=bias).to(dtype)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = 5 * torch.randn(2, 24, 3, 4, 5).to(dtype)
    with torch.no_grad():
        expected = torch.stack([norm(x[:, :, t]) for t in range(3)], dim=2) if images else norm(x)
    gamma, beta = norm.gamma.detach(), norm.bias.detach() if bias else None
    for backend, precision in (("reference", None), ("aten", "exact")):
        got = rms_norm(x, gamma, beta, activation=None, backend=backend, precision=precision)
        assert torch.equal(got, expected)
        got = rms_norm(x, gamma, beta, backend=backend, precision=precision)
        assert torch.equal(got, F.silu(expected))


def test_rms_norm_with_eps_is_that_of_ltx(dtype, seed):
    """Within the roundings: the model rounds once after the norm, the op before and after the root of C."""
    normalization = pytest.importorskip("diffusers.models.normalization")
    ltx2 = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_ltx2")
    torch.manual_seed(seed)
    x = torch.randn(2, 24, 3, 4, 5) * torch.logspace(-6, 1, 5)
    x = x.to(dtype)
    first, second = normalization.RMSNorm(24, eps=1e-8, elementwise_affine=False), ltx2.PerChannelRMSNorm()
    oracle = first(x.double().movedim(1, -1)).movedim(-1, 1)
    got = rms_norm(x, torch.ones(24, dtype=dtype), eps=1e-8, activation=None, backend="reference").double()
    most = 4 * torch.finfo(dtype).eps
    # Nothing else is as small as these pixels: a norm without eps makes ones of them.
    assert oracle[..., 0].abs().max() < 0.1
    assert torch.allclose(got, oracle, rtol=most, atol=0)
    assert torch.allclose(second(x.double()), oracle, rtol=1e-6, atol=0)


@pytest.mark.parametrize("small", range(1, 18))
def test_repeats_are_what_nearest_neighbour_does(small):
    for large in range(1, 18):
        check_repeats(large, small)


def check_repeats(large, small):
    """On rows; and on frames, where an odd number has a lone first one."""
    source = torch.arange(small, dtype=torch.float32)
    rows = F.interpolate(source.view(1, 1, -1), size=large)[0, 0]
    found = repeats((2, large, 1), (1, small, 1))
    if found is not None:
        assert torch.equal(torch.arange(large) // found.rows, rows.long())
    else:
        assert large % small or (large // small) & (large // small - 1)
    found = repeats((large, 1, 1), (small, 1, 1))
    if found is None:
        return
    lone = large > 1 and large % 2 == 1
    assert found.lone_first == lone
    frames = rows
    if lone:
        rest = F.interpolate(source[1:].view(1, 1, -1), size=large - 1)[0, 0]
        frames = torch.cat([source[:1], rest])
    got = [0 if lone and f == 0 else lone + (f - lone) // found.frames for f in range(large)]
    assert got == frames.long().tolist()


def test_frames_that_nothing_can_be_repeated_to_are_refused():
    x, small = torch.zeros(1, 4, 3, 4, 4), torch.zeros(1, 4, 1, 2, 2)
    with pytest.raises(InvalidInput, match="expected at least 2"):
        spatial_norm(x, small, small, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": torch.zeros(1, 5, 1, 2, 2)}, r"\(B, C, t, h, w\)"),
        ({"shift": torch.zeros(1, 4, 1, 2, 1)}, "the shape of scale"),
        ({"shift": torch.zeros(1, 4, 1, 2, 2, dtype=torch.float16)}, "expected one dtype"),
        ({"num_groups": 3}, "expected a divisor of the 4 channels"),
        ({"num_groups": 8}, "expected 1 to 4"),
        ({"eps": -1.0}, "not negative"),
        ({"eps": float("nan")}, "not negative"),
    ],
)
def test_bad_input_gets_a_sentence(change, words):
    small = torch.zeros(1, 4, 1, 2, 2)
    call = {"x": torch.zeros(1, 4, 2, 4, 4), "scale": small, "shift": small, "num_groups": 2} | change
    with pytest.raises(InvalidInput, match=words):
        spatial_norm(**call)


def test_scale_of_another_dtype_promotes(backend, seed):
    """As the framework's multiplication does, under autocast on a GPU for one."""
    x, small = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 1, 2, 2)
    for x_dtype, dtype in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        call = (x.to(x_dtype), small.to(dtype), small.to(dtype), 2)
        expected = spatial_norm(*call, backend="reference")
        assert expected.dtype == torch.float32
        if backend == "aten":
            got = spatial_norm(*call, backend=backend)
            assert got.dtype == torch.float32 and torch.allclose(got, expected, rtol=1e-2, atol=1e-2)


def test_specs_count_the_bytes():
    shape, itemsize = (1, 8, 4, 6, 10), 2
    elements = 8 * 4 * 6 * 10
    assert group_spec.bytes_moved(shape, itemsize) == 3 * elements * itemsize
    assert rms_spec.bytes_moved(shape, itemsize) == 2 * elements * itemsize
    latent = 8 * 2 * 3 * 5
    assert spatial_spec.bytes_moved(shape, (2, 3, 5), itemsize) == (3 * elements + 2 * latent) * itemsize
    for spec in (group_spec, spatial_spec, rms_spec):
        assert spec.flops(shape) - spec.flops(shape, silu=False) == 4 * elements


def test_auto_takes_no_kernel_that_was_not_measured():
    x, weight = torch.zeros(1, 8, 2, 4, 4), torch.ones(8)
    small = torch.zeros(1, 8, 1, 2, 2)
    for op, arguments in (
        (group_norm, (x, 2, weight)),
        (spatial_norm, (x, small, small, 2, weight)),
        (rms_norm, (x, weight)),
    ):
        answer = explain(op, *arguments)
        assert answer.chosen == "aten"
        into = explain(op, *arguments, out=FrameBuffer(torch.zeros_like(x), 0))
        assert into.chosen == "aten"


def test_why_a_kernel_cannot_run_is_a_sentence(backend):
    """What the reference and aten take, and no kernel of ours."""
    x, uneven = torch.zeros(1, 8, 4, 6, 6), torch.zeros(1, 8, 4, 2, 3)
    half = x.bfloat16()
    calls = (
        (spatial_norm, (x, uneven, uneven, 2), "1, 2, 4, ... times"),
        (spatial_norm, (half, x, x, 2), "torch.float32"),
        (spatial_norm, (x, half, half, 2), "torch.bfloat16"),
        (rms_norm, (half, torch.ones(8)), "the result torch.float32"),
        (group_norm, (x.double(), 2), "not torch.float64"),
    )
    for op, arguments, words in calls:
        if backend == "aten":
            op(*arguments, backend=backend)
            continue
        with pytest.raises(BackendUnavailable, match=words):
            op(*arguments, backend=backend)
