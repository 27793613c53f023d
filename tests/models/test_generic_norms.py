"""Norms over channels are recognised by what they compute, whatever they are called."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from causalvae_kernels import swap
from causalvae_kernels.models.generic_norms import probe_norm
from tests.support import original_code as code

pytestmark = pytest.mark.one_backend


class _Written(nn.Module):
    """A norm that is written in the way of the function it is given."""

    def __init__(self, formula, shapes=(), **settings):
        super().__init__()
        self.formula = formula
        for name, shape in zip(("a", "b"), shapes, strict=False):
            setattr(self, name, nn.Parameter(torch.rand(shape) + 0.5))
        for name, value in settings.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.formula(self, x)


def _mean_square(m, x):
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + m.eps) * m.a


def _in_float32(m, x):
    return (x.float() / x.float().norm(dim=1, keepdim=True) * x.shape[1] ** 0.5).to(x.dtype) * m.a


def _plus_one(m, x):
    return F.normalize(x, dim=1) * 6**0.5 * (1 + m.a)


FOUND = {
    "of videos": (lambda: code.Rms(6), ("gamma", None, 0.0, (5,))),
    "of images": (lambda: code.Rms(6, dims=4), ("gamma", None, 0.0, (4,))),
    "with a bias": (lambda: code.Rms(6, bias=True), ("gamma", "shift", 0.0, (5,))),
    "without weights": (lambda: code.PixelNorm(), (None, None, 1e-8, (5, 4))),
    "a larger eps": (lambda: code.PixelNorm(eps=1e-4), (None, None, 1e-4, (5, 4))),
    "squares": (lambda: _Written(_mean_square, [(6, 1, 1, 1)], eps=1e-5), ("a", None, 1e-5, (5,))),
    "bias first": (
        lambda: _Written(lambda m, x: F.normalize(x, dim=1) * 6**0.5 * m.b + m.a, [(6, 1, 1, 1)] * 2),
        ("b", "a", 0.0, (5,)),
    ),
}
NOT = {
    "layer norm": lambda: _Written(
        lambda m, x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    ),
    "over height": lambda: _Written(lambda m, x: F.normalize(x, dim=3) * x.shape[3] ** 0.5),
    "of another length": lambda: _Written(lambda m, x: F.normalize(x, dim=1) * m.a, [(6, 1, 1, 1)]),
    "weights plus one": lambda: _Written(
        lambda m, x: F.normalize(x, dim=1) * 6**0.5 * (1 + m.a), [(6, 1, 1, 1)]
    ),
    "two arguments": lambda: _Written(lambda m, x, y: x),
    "an activation": nn.SiLU,
    "nothing": lambda: _Written(lambda m, x: x),
    "rounded to float32": lambda: _Written(_in_float32, [(6, 1, 1, 1)]),
    "a clip as a whole": lambda: _Written(lambda m, x: x / x.square().mean().sqrt()),
}


@pytest.mark.parametrize("name", FOUND)
def test_recognised(name):
    make, expected = FOUND[name]
    found = probe_norm(make())
    assert (found.weight, found.bias, found.eps, found.dims) == expected


@pytest.mark.parametrize("name", NOT)
def test_not_recognised(name):
    assert probe_norm(NOT[name]()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FOUND)
def test_a_norm_that_runs_alone(name, dtype):
    """With gradients the modules run one by one: values and gradients are those of the code."""
    vae = nn.Sequential(code.PaddingConv(3, 6), FOUND[name][0](), code.PaddingConv(6, 3)).to(dtype)
    if name in ("of images",):
        return
    plain, x = copy.deepcopy(vae), torch.randn(2, 3, 3, 5, 6, dtype=dtype)
    handle = swap(vae)
    assert vae[1].forward is not type(vae[1]).forward
    grads = []
    for model in (vae, plain):
        given = x.clone().requires_grad_()
        model(given).square().mean().backward()
        grads.append([given.grad, *(p.grad for p in model.parameters())])
    tolerance = {"rtol": 2e-3, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.03}
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert handle.active


def test_a_setting_that_changes_has_the_code_run():
    vae = nn.Sequential(code.PaddingConv(3, 6), code.PixelNorm(), code.PaddingConv(6, 3)).eval()
    swap(vae, backend="aten")
    x = torch.randn(1, 3, 3, 5, 6)
    vae[1].eps = 0.5
    other = copy.deepcopy(vae)
    swap(other).restore()
    torch.testing.assert_close(vae(x), other(x))
