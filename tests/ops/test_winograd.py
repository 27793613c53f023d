"""The Winograd algorithm of the backend `cpu`: every tail, mode, layout, dtype and instruction set."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import causal_conv3d, packed_size, release_packed_weights, use_packed_budget
from causalvae_kernels.core import native
from causalvae_kernels.ops.causal_conv3d.spec import WINOGRAD_CORNER, takes_winograd
from causalvae_kernels.parity import compare_conv
from causalvae_kernels.workloads import ConvCase, make_conv_call
from tests.support.backends import DTYPES
from tests.support.cover import pairs

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))

ISAS = native.cpu_module().supported_isas() if native.why_no_cpu() is None else []

CASES = (
    ConvCase("one frame", (1, 8, 1, 8, 8), 8),
    ConvCase("two frames", (1, 16, 2, 4, 4), 16),
    ConvCase("three frames", (2, 8, 3, 5, 7), 9, residual=True),
    ConvCase("tails in space, state", (1, 9, 4, 13, 19), 17, state=True, residual=True),
    ConvCase("smallest tile", (1, 8, 2, 3, 3), 8),
    ConvCase("channels beyond one sum", (1, 130, 3, 6, 7), 33, layout="channels_last_3d"),
    ConvCase("channels beyond a block, sliced", (2, 17, 2, 9, 6), 65, layout="sliced", residual=True),
    ConvCase("permuted, state", (2, 12, 3, 6, 9), 20, layout="permuted", state=True),
    ConvCase("rgb out", (1, 16, 4, 10, 11), 3, layout="channels_last_3d"),
    ConvCase("one channel out, residual", (2, 8, 3, 6, 6), 1, residual=True),
    ConvCase("many bands", (1, 8, 3, 41, 53), 8),
    ConvCase("zeros in time", (1, 16, 5, 7, 6), 16, options={"temporal_mode": "zeros"}),
    ConvCase("zeros in time, even", (1, 16, 4, 7, 6), 16, options={"temporal_mode": "zeros"}),
    ConvCase("valid in time", (1, 16, 5, 7, 6), 16, options={"temporal_mode": "valid"}),
    ConvCase("valid in time, one output", (1, 16, 3, 7, 6), 16, options={"temporal_mode": "valid"}),
    ConvCase("replicate in space", (1, 8, 3, 5, 7), 9, options={"spatial_mode": "replicate"}),
    ConvCase("reflect in space", (1, 8, 3, 5, 7), 9, options={"spatial_mode": "reflect"}, state=True),
    ConvCase("valid in space", (1, 8, 3, 7, 9), 9, options={"spatial_mode": "valid"}),
    ConvCase("frame by frame", (3, 12, 3, 9, 10), 10, (1, 3, 3), residual=True),
    ConvCase("frame by frame, channels last", (1, 40, 2, 6, 6), 40, (1, 3, 3), layout="channels_last_3d"),
)


def is_winograd(call):
    """Whether our kernels take Winograd's algorithm for this call."""
    out = causal_conv3d(**call, backend="reference")
    return takes_winograd(call["weight"].shape, (1, 1, 1), (1, 1, 1), out.shape[2:])


@pairs(case=CASES, isa=ISAS, dtype=DTYPES)
def test_equals_the_oracle(case, isa, dtype, seed, monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", isa)
    call = make_conv_call(case, dtype, seed)
    assert is_winograd(call)
    comparison = compare_conv(call, "cpu")
    assert comparison.passed, comparison


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(8, 40),
    frames=st.integers(1, 6),
    height=st.integers(2, 14),
    width=st.integers(3, 14),
    out_channels=st.integers(8, 40),
    kernel_t=st.sampled_from([1, 3]),
    layout=st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]),
    state=st.booleans(),
    residual=st.booleans(),
    mode=st.sampled_from(["zeros", "replicate", "reflect"]),
    seed=st.integers(0, 2**31),
)
def test_any_sizes(
    batch, channels, frames, height, width, out_channels, kernel_t, layout, state, residual, mode, seed
):
    shape = (batch, channels, frames, height, width)
    kernel, options = (kernel_t, 3, 3), {"spatial_mode": mode}
    case = ConvCase("any", shape, out_channels, kernel, layout, state, True, residual, options)
    comparison = compare_conv(make_conv_call(case, torch.float32, seed), "cpu")
    assert comparison.passed, comparison


@pairs(shape=[(1, 40, 3, 6, 7), (2, 16, 5, 41, 53), (1, 16, 2, 90, 90)], isa=ISAS, kernel_t=[1, 3])
def test_threads_do_not_change_a_bit(shape, kernel_t, isa, monkeypatch):
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", isa)
    call = make_conv_call(ConvCase("threads", shape, 72, (kernel_t, 3, 3)), torch.float32, 1)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(causal_conv3d(**call, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("channels", [16, 128, 512])
@pytest.mark.parametrize("kernel_t", [1, 3])
def test_the_stated_error(channels, kernel_t):
    """At most 1.5e-6 relative to float64: docs/design/winograd.md."""
    case = ConvCase("error", (1, channels, 3, 12, 12), channels, (kernel_t, 3, 3), bias=False)
    call = make_conv_call(case, torch.float32, channels)
    assert is_winograd(call)
    oracle = causal_conv3d(call["x"].double(), call["weight"].double())
    got = causal_conv3d(**call, backend="cpu").double()
    assert (got - oracle).norm() / oracle.norm() < 1.5e-6


def test_the_error_within_a_tile():
    """The corner is as far above the mean as the factor of the worst element says."""
    squares = torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(20):
        call = make_conv_call(ConvCase("tile", (1, 128, 2, 16, 16), 32, bias=False), torch.float32, seed)
        error = causal_conv3d(**call, backend="cpu") - causal_conv3d(
            call["x"].double(), call["weight"].double()
        )
        squares += error.square().mean(dim=(0, 1, 2)).view(4, 4, 4, 4).mean(dim=(0, 2))
    corner = (squares.max() / squares.mean()).sqrt().item()
    assert corner == pytest.approx(WINOGRAD_CORNER, rel=0.05)


# (frames, temporal mode, slices of the kernel's four that enter)
NEEDED = [
    (1, "replicate", {1}),
    (2, "replicate", {1, 3}),
    (1, "zeros", {3}),
    (3, "replicate", {0, 1, 2, 3}),
]


@pytest.mark.parametrize(("frames", "mode", "slices"), NEEDED, ids=str)
def test_padding_saves_products(frames, mode, slices):
    """Weights that must not enter are NaN: under "replicate" a first pair needs two of its four products."""
    module, isa = native.cpu_module(), native.cpu_isa()
    x, weight = torch.randn(1, 8, frames, 4, 4), torch.randn(8, 8, 3, 3, 3)
    floats = module.winograd_packed_floats(native.describe(weight), isa)
    packed = torch.empty(36, 4, floats // (36 * 4))
    module.winograd_pack(packed.data_ptr(), native.describe(weight), "float32", isa, 1)
    for unused in {0, 1, 2, 3} - slices:
        packed[:, unused] = float("nan")
    out = torch.empty(1, 8, frames, 4, 4)
    tensors = [native.describe(t) for t in (out, x, weight)]
    modes = ((1, 1, 1), (1, 1, 1), (1, 1, 1, 1), mode, "zeros", "float32", isa, 1, packed.data_ptr())
    module.causal_conv3d(*tensors, None, None, None, *modes)
    expected = causal_conv3d(x.double(), weight.double(), temporal_mode=mode).float()
    assert torch.allclose(out, expected, rtol=1e-4, atol=1e-4)
    for needed in slices:
        spoilt = packed.clone()
        spoilt[:, needed] = float("nan")
        modes = (*modes[:-1], spoilt.data_ptr())
        module.causal_conv3d(*tensors, None, None, None, *modes)
        assert out.isnan().any(), "a slice that enters was not read"


@pytest.mark.parametrize("kernel_t", [1, 3])
def test_no_weights_are_read_beyond_the_last_channel(kernel_t):
    """The last block of channels is not full; behind the weights lies NaN."""
    module, isa = native.cpu_module(), native.cpu_isa()
    weight = torch.full((64, 3, kernel_t, 3, 3), float("nan"))[:40].fill_(1.0)
    packed = torch.empty(module.winograd_packed_floats(native.describe(weight), isa))
    module.winograd_pack(packed.data_ptr(), native.describe(weight), "float32", isa, 1)
    assert packed.isfinite().all()


def test_without_room_for_packed_weights():
    """The bits are the same where weights are transformed on every call; a small call goes direct instead."""
    large = make_conv_call(ConvCase("large", (1, 8, 2, 50, 50), 8), torch.float32, 2)
    small = make_conv_call(ConvCase("small", (1, 8, 2, 8, 8), 8), torch.float32, 3)
    kept = causal_conv3d(**large, backend="cpu")
    with use_packed_budget(0):
        release_packed_weights()
        assert torch.equal(causal_conv3d(**large, backend="cpu"), kept)
        assert compare_conv(small, "cpu").passed
        assert packed_size() == 0


def test_refuses_what_is_not_for_it():
    module, isa = native.cpu_module(), native.cpu_isa()
    for kernel in ((2, 3, 3), (3, 5, 3), (3, 3, 1)):
        with pytest.raises(ValueError, match="expected a kernel of 3x3x3 or 1x3x3"):
            module.winograd_packed_floats(native.describe(torch.empty(8, 8, *kernel)), isa)
    x, weight, out = torch.empty(1, 8, 2, 4, 4), torch.empty(8, 8, 3, 3, 3), torch.empty(1, 8, 2, 2, 2)
    tensors = [native.describe(t) for t in (out, x, weight)]
    with pytest.raises(ValueError, match="expected 1 everywhere for Winograd"):
        module.causal_conv3d(
            *tensors,
            None,
            None,
            None,
            (1, 2, 2),
            (1, 1, 1),
            (1, 1, 1, 1),
            "replicate",
            "zeros",
            "float32",
            isa,
            1,
            8,
        )
