"""`downsample_conv`: every backend against the fp64 oracle, the modules it stands for, gradients, tracing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import InvalidInput, downsample_conv
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.downsample_conv import spec
from causalvae_kernels.parity import compare_downsample
from causalvae_kernels.workloads import DOWNSAMPLE_CASES, DownsampleCase, make_downsample_call
from tests.support.backends import BACKENDS, DTYPES, NAMES
from tests.support.cover import pairs, quick
from tests.support.windows import windows_for

pytestmark = pytest.mark.skipif(interpreting(), reason="slow there: test_resampling_triton.py")

DOWNSAMPLE = torch.ops.causalvae_kernels.downsample_conv.default
DOWNSAMPLE_INTO = torch.ops.causalvae_kernels.downsample_conv.out


@pairs(case=DOWNSAMPLE_CASES, backend=BACKENDS, dtype=DTYPES)
@pytest.mark.every_instruction_set
def test_backend_against_the_oracle(case, dtype, backend, seed):
    comparison = compare_downsample(make_downsample_call(case, dtype, seed), backend)
    assert comparison.passed, comparison


@pairs(case=DOWNSAMPLE_CASES, dtype=DTYPES[:2])
def test_aten_in_the_exact_tier_gives_the_bits_of_the_reference(case, dtype, seed):
    comparison = compare_downsample(make_downsample_call(case, dtype, seed), "aten", precision="exact")
    assert comparison.passed, comparison


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_sizes(data):
    draw = data.draw
    shape = [draw(st.integers(low, high)) for low, high in ((1, 2), (1, 20), (1, 6), (2, 13), (2, 13))]
    layout = draw(st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]))
    case = DownsampleCase("any", tuple(shape), draw(st.integers(1, 36)), draw(st.booleans()), layout)
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    call = make_downsample_call(case, dtype, draw(st.integers(0, 2**31)))
    for name in NAMES:
        comparison = compare_downsample(call, name)
        assert comparison.passed, (name, comparison)


@pairs(frames=[1, 2, 3, 8, 9], compress_time=[False, True], dtype=DTYPES)
def test_reference_is_what_cogvideox_does(frames, compress_time, dtype, seed):
    downsampling = pytest.importorskip("diffusers.models.downsampling")
    torch.manual_seed(seed)
    module = downsampling.CogVideoXDownsample3D(3, 5, compress_time=compress_time).to(dtype)
    x, conv = torch.randn(2, 3, frames, 7, 6).to(dtype), module.conv
    with torch.no_grad():
        arguments = (x, conv.weight.unsqueeze(2), conv.bias)
        got = downsample_conv(*arguments, compress_time=compress_time, backend="reference")
        tolerance = 4 * torch.finfo(dtype).eps
        assert torch.allclose(got, module(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("backend", "precision"), [("aten", "high"), ("aten", "exact"), ("reference", "high")]
)
@pytest.mark.parametrize("width", [2, 3])
def test_one_column_is_not_what_onednn_gets_wrong(width, backend, precision, strides):
    """A tile of four columns ends so; see `conv3d`."""
    x, weight = torch.randn(1, 4, 3, 8, width).bfloat16(), torch.randn(5, 4, 1, 3, 3).bfloat16()
    got = downsample_conv(x, weight, backend=backend, precision=precision)
    assert got.shape[4] == 1 and strides == [1]
    expected = downsample_conv(x.double(), weight.double(), backend="reference")
    assert (got - expected).abs().max() <= 2**-6 * expected.abs().max()


def test_averages_do_not_overflow(backend):
    """60000 + 60000 is beyond float16; the average is not."""
    x = torch.full((1, 1, 2, 2, 2), 60000.0, dtype=torch.float16)
    weight = torch.zeros(1, 1, 1, 3, 3, dtype=torch.float16)
    weight[..., 0, 0] = 0.5
    assert downsample_conv(x, weight, compress_time=True, backend=backend).item() == 30000.0


def test_what_lies_beyond_the_frame_is_zero(backend):
    """A window of a larger tensor: its neighbours must not be read as padding."""
    whole = torch.full((1, 8, 3, 9, 9), torch.nan)
    x = whole[:, :, :, :6, :6]
    x.copy_(torch.randn(1, 8, 3, 6, 6))
    weight = torch.randn(4, 8, 1, 3, 3)
    got = downsample_conv(x, weight, backend=backend)
    expected = F.conv3d(F.pad(x, (0, 1, 0, 1)), weight, stride=(1, 2, 2))
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("frames", "compress_time"), [(2, False), (3, True), (4, True), (1, True)])
def test_gradients_of_everything(frames, compress_time):
    shapes = ((1, 2, frames, 4, 3), (2, 2, 1, 3, 3), (2,))
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def conv(*arguments):
        return downsample_conv(*arguments, compress_time=compress_time)

    assert torch.autograd.gradcheck(conv, tensors)
    assert torch.autograd.gradgradcheck(conv, tensors, fast_mode=True)


@pytest.mark.exhaustive  # tests/ops/test_declaration.py checks one layout of every op
@pytest.mark.one_backend
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "sliced"])
@pytest.mark.parametrize("compress_time", [False, True])
def test_opcheck(layout, compress_time, backend):
    call = make_downsample_call(
        DownsampleCase("o", (1, 4, 3, 5, 6), 5, compress_time, layout), torch.float32, 1
    )
    torch.library.opcheck(
        DOWNSAMPLE, (call["x"], call["weight"], call["bias"], compress_time, backend, "high")
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("channels_last", quick([False, True], [True]))
def test_compiles_without_a_graph_break(channels_last, backend):
    x, weight = torch.randn(1, 4, 4, 5, 6), torch.randn(6, 4, 1, 3, 3)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)

    def step(x):
        return downsample_conv(x * 2, weight, compress_time=True, backend=backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for frames in (x, torch.cat([x, x], dim=2)):
        got, expected = compiled(frames), step(frames)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert got.stride() == expected.stride()


@pytest.mark.one_backend
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_frameworks_dtypes(low, backend):
    x, weight = torch.randn(1, 8, 3, 8, 8), torch.randn(9, 8, 1, 3, 3)
    with torch.autocast("cpu", dtype=low):
        got = downsample_conv(x, weight, compress_time=True, backend=backend)
    expected = downsample_conv(x, weight, compress_time=True, backend="reference")
    assert got.dtype == low and (got - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(4, 3, 5, 5)}, "five dimensions"),
        ({"x": torch.zeros(1, 4, 3, 1, 5)}, "height and a width of at least 2"),
        ({"weight": torch.zeros(2, 3, 1, 3, 3)}, "expects 3"),
        ({"weight": torch.zeros(2, 4, 3, 3, 3)}, r"expected \(1, 3, 3\)"),
        ({"weight": torch.zeros(2, 4, 1, 3, 3).double()}, "one dtype; convert"),
        ({"bias": torch.zeros(3)}, r"expected \(2,\)"),
    ],
)
def test_bad_input_gets_a_sentence(change, words):
    call = {"x": torch.zeros(1, 4, 3, 5, 5), "weight": torch.zeros(2, 4, 1, 3, 3)} | change
    with pytest.raises(InvalidInput, match=words):
        downsample_conv(**call)


def test_flops_and_bytes():
    assert spec.flops((1, 4, 5, 6, 7), (8, 4, 1, 3, 3)) == 2 * 8 * 4 * 9 * 5 * 3 * 3
    assert spec.flops((2, 4, 5, 6, 7), (8, 4, 1, 3, 3), True) == 2 * 2 * 8 * 4 * 9 * 3 * 3 * 3
    assert spec.bytes_moved((1, 4, 5, 6, 7), (8, 4, 1, 3, 3), 2, True) == 2 * (4 * 210 + 8 * 27 + 8 * 4 * 9)


# ---------------------------------------------------------------- into memory that is there


@pairs(case=DOWNSAMPLE_CASES, backend=BACKENDS, dtype=DTYPES)
@pytest.mark.every_instruction_set
def test_into_a_window(case, dtype, backend, seed):
    """The bits of the call that allocates; nothing around the output is touched."""
    call = make_downsample_call(case, dtype, seed)
    expected = downsample_conv(**call, backend=backend)
    for out, untouched in windows_for(expected):
        assert downsample_conv(**call, out=out, backend=backend) is out
        assert torch.equal(getattr(out, "body", out), expected)
        assert untouched()


@pytest.mark.parametrize("compress_time", [False, True])
def test_out_is_checked(compress_time, backend):
    x, weight, bias = torch.randn(1, 4, 3, 6, 6), torch.randn(4, 4, 1, 3, 3), torch.randn(4)
    space = torch.randn(1, 4, 3, 6, 6)
    out = space[:, :, : 2 if compress_time else 3, 3:, 3:]
    reads = {"x": space, "weight": space.view(-1)[-144:].view(weight.shape), "bias": out[0, :, 0, 0, 0]}
    before = space.clone()
    for name, read in reads.items():
        call = {"x": x, "weight": weight, "bias": bias, "compress_time": compress_time}
        with pytest.raises(InvalidInput, match=f"downsample_conv: out shares memory with {name}, "):
            downsample_conv(**call | {name: read}, out=out, backend=backend)
    assert torch.equal(space, before)
    given = {"compress_time": compress_time, "backend": backend}
    with pytest.raises(InvalidInput, match="elements share memory, expected a place for each"):
        downsample_conv(x, weight, out=torch.zeros(1).expand(out.shape), **given)
    with pytest.raises(InvalidInput, match=r"out has shape .*, expected \(1, 4, [23], 3, 3\)"):
        downsample_conv(x, weight, out=out[..., :2], **given)
    with pytest.raises(InvalidInput, match="out is torch.float64 on cpu, expected torch.float32"):
        downsample_conv(x, weight, out=out.double(), **given)
    with pytest.raises(InvalidInput, match="requires a gradient"):
        downsample_conv(x, weight.requires_grad_(), out=out, **given)
    weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match="expected no autocast"):
        downsample_conv(x, weight, out=out, **given)


@pytest.mark.exhaustive
@pytest.mark.one_backend
def test_opcheck_into(backend):
    call = make_downsample_call(DownsampleCase("o", (1, 4, 3, 5, 6), 5, True), torch.float32, 1)
    out = torch.zeros(1, 5, 2, 2, 3)
    arguments = (call["x"], call["weight"], call["bias"], True, backend, "high")
    torch.library.opcheck(DOWNSAMPLE_INTO, (out, *arguments))
    DOWNSAMPLE_INTO(out, *arguments)
    assert torch.equal(out, downsample_conv(**call, backend=backend))
