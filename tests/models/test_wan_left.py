"""Modules of Wan's kind that no rule fits: they are left, they say why, and they compute as before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as wan
from torch import nn

from causalvae_kernels import InvalidInput, swap
from tests.support.wan_models import build, held


def _changed(module: nn.Module, path: str, **settings: object) -> nn.Module:
    for name, value in settings.items():
        setattr(module.get_submodule(path), name, value)
    return module


def _conv(*arguments: object, **options: object) -> nn.Module:
    return wan.WanCausalConv3d(4, 4, *arguments, **options)


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "padding": (
        lambda: _conv(3, padding=(1, 0, 0)),
        "pads (0, 0, 0, 0) pixels, the rule is for (1, 1, 1, 1)",
    ),
    "frames": (lambda: _conv((3, 1, 1), padding=(2, 0, 0)), "pads 4 frames, the rule is for 0 or 2"),
    "dilation": (lambda: _changed(_conv(3, padding=1), "", dilation=(1, 2, 2)), "dilation is (1, 2, 2)"),
    "last": (lambda: wan.WanRMS_norm(4, channel_first=False), "its channels come last"),
    "scale": (lambda: _changed(wan.WanRMS_norm(4, images=False), "", scale=3.0), "its scale is 3.0"),
    "bias": (lambda: _changed(wan.WanRMS_norm(4, images=False), "", bias=0.5), "its bias is 0.5"),
    "none": (lambda: wan.WanResample(4, "none"), "its resample is a Identity, expected Sequential"),
    "bilinear": (
        lambda: _changed(wan.WanResample(4, "upsample2d"), "resample.0", mode="bilinear"),
        "which is not what the op does",
    ),
    "zeros": (
        lambda: _changed(wan.WanResample(4, "downsample2d"), "resample.0", padding=(1, 0, 1, 0)),
        "which is not what the op does",
    ),
    "stride": (
        lambda: _changed(wan.WanResample(4, "upsample3d"), "resample.1", stride=(2, 2)),
        "the rule is for",
    ),
    "time": (
        lambda: _changed(wan.WanResample(4, "downsample3d"), "time_conv", padding_mode="circular"),
        "padding_mode='circular'",
    ),
}


@pytest.mark.parametrize("case", LEFT)
def test_a_module_that_no_rule_fits(case):
    make, words = LEFT[case]
    torch.manual_seed(0)
    module = make().eval().requires_grad_(False)
    x = torch.randn(1, 4, 3, 4, 4) if case != "last" else torch.randn(1, 3, 4, 4, 4)
    ours, handle = held(module)
    try:
        expected = module(x)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            ours(x)
    else:
        assert torch.allclose(ours(x), expected, atol=1e-5)
    entry = next(e for e in handle.report if e.name == "extra")
    assert not entry.replaced and words in entry.reason


def test_a_hooked_sampler_of_a_resampler():
    vae = build("2.1")
    seen = []
    with swap(vae) as handle:
        vae.decoder.up_blocks[0].upsamplers[0].resample[0].register_forward_hook(lambda *_: seen.append(1))
        vae.decoder(torch.randn(1, 5, 1, 2, 2))
        entry = next(e for e in handle.report if e.name == "decoder.up_blocks.0.upsamplers.0")
    assert seen and "its resample.0 must be called" in entry.reason


def test_a_coder_with_a_convolution_of_another_kind():
    vae = build("2.1")
    with swap(vae) as handle:
        vae.decoder.conv_in.padding_mode = "circular"
        entry = next(e for e in handle.report if e.name == "decoder")
    assert not entry.replaced and "padding_mode='circular'" in entry.reason


def test_a_hooked_convolution_of_a_coder_is_called():
    vae = build("qwen")
    with swap(vae) as handle:
        vae.encoder.conv_out.register_forward_hook(lambda *_: None)
        entry = next(e for e in handle.report if e.name == "encoder")
    assert "its conv_out must be called" in entry.reason


def test_single_images_only():
    """Qwen-Image 2.1 folds the frame away: more of them are refused in its own words."""
    vae = build("qwen 2.1")
    with pytest.raises(InvalidInput, match='frames="any" needs to know which frame counts'):
        swap(vae, frames="any")
    handle = swap(vae)
    with pytest.raises(ValueError, match="it cannot take a feature cache"):
        vae.encode(torch.zeros(1, 4, 5, 16, 16))
    with pytest.raises(InvalidInput, match='call swap\\(vae, frames="any"\\)'):
        handle.encode_stream([])
