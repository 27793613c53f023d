"""A few shapes through every Triton kernel, in its interpreter: what `make test` runs of them.

`make test-all` runs all tests of the ops there.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.causal_conv3d.backends import epilogue
from causalvae_kernels.parity import (
    compare,
    compare_conv,
    compare_downsample,
    compare_norm,
    compare_pad,
    compare_upsample,
)
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import (
    CONV_CASES,
    DOWNSAMPLE_CASES,
    NORM_CASES,
    PAD_CASES,
    UPSAMPLE_CASES,
    make_conv_call,
    make_downsample_call,
    make_norm_call,
    make_pad_call,
    make_upsample_call,
    with_layout,
)

pytestmark = pytest.mark.skipif(not interpreting(), reason="runs kernels on the CPU: TRITON_INTERPRET=1")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def named(cases: Iterable, *names: str) -> pytest.MarkDecorator:
    """Parametrise over the cases of these names."""
    found = {case.name: case for case in cases}
    return pytest.mark.parametrize("case", [found[name] for name in names], ids=names)


@BOTH
@named(
    CONV_CASES,
    "fewer frames than the kernel, state",
    "two frames, zeros",
    "width of one, channels last",
    "channels last, state, residual",
    "permuted strides, state",
    "stride 2 everywhere",
    "dilation",
    "replicate in space",
    "reflect in space, channels last",
    "valid in time",
)
def test_convolution(case, dtype, seed):
    comparison = compare_conv(make_conv_call(case, dtype, seed), "triton")
    assert comparison.passed, comparison


@pytest.mark.parametrize("in_place", [False, True], ids=["fresh", "in place"])
@named(PAD_CASES, "one frame, all sides", "state, channels last", "reflect", "sliced, batch", "permuted")
def test_padding(case, in_place, seed):
    comparison = compare_pad(make_pad_call(case, torch.bfloat16, seed), "triton", in_place=in_place)
    assert comparison.passed, comparison


@pytest.mark.parametrize("op", sorted(NORMS))
@named(
    NORM_CASES,
    "channels last",
    "no vector divides, batch",
    "no parameters, no activation",
)
def test_norms(op, case, seed):
    for in_place, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        comparison = compare_norm(op, make_norm_call(op, case, dtype, seed), "triton", in_place=in_place)
        assert comparison.passed, comparison


@named(
    UPSAMPLE_CASES,
    "width of one, edges",
    "frames repeated, first single",
    "space, three frames, state",
    "time and space, state",
    "time, first single, even count",
)
def test_upsampling(case, seed):
    comparison = compare_upsample(make_upsample_call(case, torch.float32, seed), "triton")
    assert comparison.passed, comparison


@named(DOWNSAMPLE_CASES, "odd sizes, batch", "pairs and a first frame", "smallest frames")
def test_downsampling(case, seed):
    comparison = compare_downsample(make_downsample_call(case, torch.float32, seed), "triton")
    assert comparison.passed, comparison


@BOTH
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d"])
def test_bias_and_residual_in_one_pass(layout, dtype):
    y, residual = (with_layout(torch.randn(2, 24, 2, 5, 9), layout).to(dtype) for _ in range(2))
    bias = torch.randn(24).to(dtype)
    column = bias.view(-1, 1, 1, 1)
    reference, oracle = y + column + residual, y.double() + column.double() + residual.double()
    comparison = compare(epilogue.add_(y, bias, residual), reference, oracle)
    assert comparison.passed, comparison
