"""Bias and residual behind the framework's convolution on a GPU: one pass, any strides, no copy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.causal_conv3d.backends import aten, epilogue
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs
from causalvae_kernels.parity import compare
from causalvae_kernels.workloads import with_layout
from causalvae_kernels.workloads.cases import LAYOUTS

interpreted = pytest.mark.skipif(not interpreting(), reason="runs kernels on the CPU: TRITON_INTERPRET=1")

SHAPES = {
    "one element": (1, 1, 1, 1, 1),
    "one pixel": (2, 40, 1, 1, 1),
    "one channel": (2, 1, 3, 5, 7),
    "three channels": (1, 3, 2, 33, 35),
    "no block divides, batch": (2, 67, 3, 5, 9),
    "several tiles of channels": (1, 320, 2, 3, 5),
    "vectors": (2, 96, 2, 4, 8),
    "several tiles of pixels": (1, 16, 3, 31, 37),
}


def call(shape: tuple[int, ...], dtype: torch.dtype, layouts: tuple[str, str]) -> tuple[Tensor, ...]:
    y, residual = (with_layout(torch.randn(shape).to(dtype), layout) for layout in layouts)
    return y, torch.randn(shape[1]).to(dtype), residual


def check(y: Tensor, bias: Tensor, residual: Tensor) -> None:
    """Add in place, and compare with the sum in float64."""
    column = bias.view(-1, 1, 1, 1)
    oracle = y.double() + column.double() + residual.double()
    reference = y + column + residual
    strides, before = y.stride(), residual.clone()
    got = epilogue.add_(y, bias, residual)
    assert got is y and y.stride() == strides and torch.equal(residual, before)
    comparison = compare(y, reference, oracle)
    assert comparison.passed, comparison


PAIRS = [(layout, layout) for layout in LAYOUTS] + [
    ("channels_last_3d", "contiguous"),
    ("contiguous", "channels_last_3d"),
    ("channels_last_3d", "sliced"),
    ("permuted", "channels_last_3d"),
]


@interpreted
@pytest.mark.parametrize("layouts", PAIRS, ids="-".join)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_strides(shape, layouts):
    y, bias, residual = call(shape, torch.bfloat16, layouts)
    assert epilogue.why_not_fused(y, residual) is None
    check(y, bias, residual)


@interpreted
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
@pytest.mark.parametrize("shape", [SHAPES["vectors"], SHAPES["no block divides, batch"]], ids=str)
def test_dtypes(shape, layout, dtype):
    check(*call(shape, dtype, (layout, layout)))


@interpreted
def test_one_rounding():
    """Of two roundings, both would go down."""
    y = torch.ones(1, 8, 1, 3, 3, dtype=torch.bfloat16)
    assert (epilogue.add_(y, torch.full_like(y[0, :, 0, 0, 0], 3 / 1024), y * 3 / 1024) == 1 + 2**-7).all()


@interpreted
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_windows_at_random(data):
    """Bodies of larger tensors: what surrounds them is neither read nor written."""
    shape = tuple(
        data.draw(st.sampled_from(n)) for n in ((1, 2), (1, 8, 12, 40), (1, 3), (1, 4, 5), (1, 8, 9))
    )
    layouts = tuple(data.draw(st.sampled_from(["contiguous", "channels_last_3d"])) for _ in range(2))
    before, after = (data.draw(st.tuples(*[st.integers(0, 2)] * 5)) for _ in range(2))
    grown = tuple(n + a + b for n, a, b in zip(shape, before, after, strict=True))

    def window(layout: str) -> tuple[Tensor, Tensor]:
        whole = with_layout(torch.full(grown, float("nan")), layout).bfloat16()
        inner = whole
        for dim, (start, size) in enumerate(zip(before, shape, strict=True)):
            inner = inner.narrow(dim, start, size)
        inner.copy_(torch.randn(shape))
        return whole, inner

    (whole, y), (_, residual) = window(layouts[0]), window(layouts[1])
    check(y, torch.randn(shape[1]).bfloat16(), residual)
    assert whole.isnan().sum() == whole.numel() - y.numel()


@interpreted
def test_a_strided_bias():
    y, _, residual = call((1, 8, 2, 3, 3), torch.float32, ("channels_last_3d", "channels_last_3d"))
    check(y, torch.randn(16)[::2], residual)


def test_without_the_kernel_the_framework_adds():
    """float64 is not for the kernel; elsewhere this is what happens without Triton."""
    y, bias, residual = call((1, 5, 2, 3, 4), torch.float64, ("channels_last_3d", "contiguous"))
    assert "torch.float64" in epilogue.why_not_fused(y, residual)
    column = bias.view(-1, 1, 1, 1)
    expected = y + column + residual
    assert torch.equal(epilogue.add_(y.clone(), bias, residual), expected)
    assert torch.equal(epilogue.add_(y.clone(), bias, None), y + column)
    assert torch.equal(epilogue.add_(y.clone(), None, residual), y + residual)
    assert epilogue.add_(y, None, None) is y


class Watch(TorchDispatchMode):
    """Records the framework's operators, and whether convolutions got a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.biased: list[bool] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names.append(name)
        if name == "convolution":
            self.biased.append(args[2] is not None)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("precision", ["high", "exact"])
def test_on_a_gpu_the_convolution_gets_no_bias_and_nothing_is_copied(residual, precision):
    """A GPU that is not there: torch knows what its operators would return. The tier exact keeps the call."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        last = {"dtype": torch.bfloat16, "device": "cuda", "memory_format": torch.channels_last_3d}
        x, weight = torch.empty(1, 16, 6, 8, 8, **last), torch.empty(32, 16, 3, 3, 3, **last)
        bias = torch.empty(32, dtype=torch.bfloat16, device="cuda")
        added = torch.empty(1, 32, 4, 8, 8, **last) if residual else None
        with Watch() as watch:
            y = aten.CONV.make(ConvArgs(x, weight, bias, residual=added, temporal_mode="valid"), precision)
    assert y.shape == (1, 32, 4, 8, 8)
    assert watch.biased == [precision == "exact"]
    assert watch.names.count("add_") == (precision == "high") + residual  # here without Triton
    assert set(watch.names) <= {"convolution", "add_", "view", "device"}, watch.names
