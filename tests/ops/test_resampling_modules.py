"""The resampling convolutions as diffusers' modules use them, chunk by chunk, and what they allocate."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels import downsample_conv, release_packed_weights, upsample_conv
from causalvae_kernels.core import native
from causalvae_kernels.core.op import op_named
from causalvae_kernels.core.triton_runtime import interpreting

pytestmark = pytest.mark.skipif(interpreting(), reason="slow there: test_resampling_triton.py")


def close(got, expected):
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cogvideox_doubles_frames_that_the_next_convolution_takes_once(backend, seed):
    """The upsampler's frames are equal in pairs, and so is the cache of the convolution behind it."""
    upsampling = pytest.importorskip("diffusers.models.upsampling")
    vae = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_cogvideox")
    torch.manual_seed(seed)
    up = upsampling.CogVideoXUpsample3D(16, 16, compress_time=True)
    conv = vae.CogVideoXCausalConv3d(16, 24, 3)
    cache = state = None
    for frames in (3, 2, 4):
        x = torch.randn(1, 16, frames, 8, 12)
        expected, cache = conv(up(x), cache)
        once = upsample_conv(x, up.conv.weight.unsqueeze(2), up.conv.bias, backend=backend)
        got, state = upsample_conv(
            once,
            conv.conv.weight,
            conv.conv.bias,
            scale=(2, 1, 1),
            first_chunk=frames % 2 == 1,
            initial_state=state,
            return_final_state=True,
            backend=backend,
        )
        assert close(got, expected)
        assert close(state.expand(-1, -1, 2, -1, -1), cache)


@torch.no_grad()
@pytest.mark.parametrize("factor", [(1, 2, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_hunyuanvideo(frames, factor, backend, seed):
    vae = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_hunyuan_video")
    torch.manual_seed(seed)
    module, x = (
        vae.HunyuanVideoUpsampleCausal3D(16, 9, upsample_factor=factor),
        torch.randn(1, 16, frames, 8, 9),
    )
    conv = module.conv.conv
    got = upsample_conv(x, conv.weight, conv.bias, scale=factor, spatial_mode="replicate", backend=backend)
    assert close(got, module(x))


@torch.no_grad()
@pytest.mark.parametrize(("mode", "op"), [("upsample2d", upsample_conv), ("downsample2d", downsample_conv)])
def test_wan(mode, op, backend, seed):
    vae = pytest.importorskip("diffusers.models.autoencoders.autoencoder_kl_wan")
    torch.manual_seed(seed)
    module, x = vae.WanResample(16, mode), torch.randn(2, 16, 3, 8, 10)
    conv = module.resample[1]
    assert close(op(x, conv.weight.unsqueeze(2), conv.bias, backend=backend), module(x))


class Fresh(TorchDispatchMode):
    """Collects the sizes of the tensors that calls allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.is_view or func.namespace == "causalvae_kernels" or not isinstance(out, torch.Tensor):
            return out
        if not any(out is a for a in (*args, *(kwargs or {}).values())):
            self.elements.append(out.numel())
        return out


def allocated(name, backend, *arguments, **keywords):
    """Return the sizes of what a backend allocates, the packed weights being there already."""
    op = op_named(name)
    args, out = op.prepare(*arguments, **keywords)
    op.run(args, out, backend, "high")  # below the operator, which hides what is inside
    with Fresh() as fresh:
        op.run(args, out, backend, "high")
    return sorted(fresh.elements)


@pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))
@torch.no_grad()
def test_nothing_upsampled_or_padded_is_written():
    """On the CPU the only large tensors are the output, and the averages where pairs are averaged."""
    x, weight = torch.randn(1, 16, 5, 24, 32), torch.randn(16, 16, 3, 3, 3)
    frame, one = 16 * 24 * 32, weight[:, :, :1]
    assert allocated("upsample_conv", "cpu", x, one) == [5 * 4 * frame]
    assert allocated("upsample_conv", "cpu", x, weight, scale=2) == [9 * 4 * frame]
    assert allocated("upsample_conv", "cpu", x, weight, scale=(2, 1, 1)) == [9 * frame]
    assert allocated("downsample_conv", "cpu", x, one) == [5 * frame // 4]
    assert allocated("downsample_conv", "cpu", x, one, compress_time=True)[-2:] == [3 * frame // 4, 3 * frame]
    assert allocated("upsample_conv", "aten", x, one).count(5 * 4 * frame) > 1, "what is upsampled is seen"
    release_packed_weights()
