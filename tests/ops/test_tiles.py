"""Convolutions on matrix tiles: the stand-in for the instructions everywhere, AMX where there is one."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from causalvae_kernels import (
    causal_conv3d,
    downsample_conv,
    explain,
    packed_size,
    release_packed_weights,
    swap,
    use_packed_budget,
)
from causalvae_kernels.core import native
from causalvae_kernels.core.op import Op
from causalvae_kernels.ops.causal_conv3d.backends import cpu
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs, takes_tiles
from causalvae_kernels.parity import compare_conv, compare_upsample
from causalvae_kernels.workloads import (
    ConvCase,
    UpsampleCase,
    make_conv_call,
    make_upsample_call,
    small_cogvideox_config,
)
from tests.support.cover import pairs

pytestmark = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))

HAS_AMX = native.why_no_cpu() is None and native.cpu_module().has_tiles()
UNITS = ["emulated", *(["amx"] if HAS_AMX else [])]

CASES = (
    ConvCase("one frame", (1, 8, 1, 8, 8), 8),
    ConvCase("one pixel", (1, 8, 1, 1, 1), 8),
    ConvCase("one row", (1, 33, 2, 1, 40), 17),
    ConvCase("one column, state", (2, 32, 2, 21, 1), 16, state=True),
    ConvCase("two tiles of pixels, one of outputs", (1, 32, 1, 4, 6), 16),
    ConvCase("channels beyond a group, outputs beyond a block", (1, 40, 3, 5, 7), 33, residual=True),
    ConvCase("batch, channels last", (2, 64, 3, 9, 10), 48, layout="channels_last_3d", residual=True),
    ConvCase("odd channels, contiguous", (1, 45, 2, 6, 19), 3),
    ConvCase("permuted, state", (2, 12, 3, 6, 9), 20, layout="permuted", state=True),
    ConvCase("sliced", (2, 17, 2, 9, 6), 65, layout="sliced", residual=True),
    ConvCase("several slabs", (1, 160, 2, 4, 5), 16),
    ConvCase("several pieces of rows", (1, 32, 2, 61, 57), 16, layout="channels_last_3d"),
    ConvCase("several pieces of columns", (1, 8, 1, 2, 1100), 8),
    ConvCase("several frames in a piece", (1, 16, 9, 5, 6), 40, state=True),
    ConvCase("folded columns", (1, 3, 3, 9, 10), 70),
    ConvCase("folded columns, one, state", (2, 8, 3, 5, 1), 40, state=True),
    ConvCase("folded columns, strided", (1, 4, 3, 7, 21), 40, options={"stride": (1, 2, 2)}),
    ConvCase("folded columns, dilated", (1, 10, 3, 7, 9), 40, options={"dilation": (1, 2, 2)}),
    ConvCase("1x1x1", (2, 24, 3, 7, 9), 50, (1, 1, 1)),
    ConvCase("1x3x3", (1, 16, 3, 7, 9), 16, (1, 3, 3)),
    ConvCase("3x1x1, state", (1, 16, 3, 7, 9), 16, (3, 1, 1), state=True),
    ConvCase("5x3x1", (1, 16, 3, 7, 9), 16, (5, 3, 1)),
    ConvCase("zeros in time", (1, 16, 5, 7, 6), 16, options={"temporal_mode": "zeros"}),
    ConvCase("zeros in time, one frame", (1, 16, 1, 7, 6), 16, options={"temporal_mode": "zeros"}),
    ConvCase("valid in time", (1, 16, 5, 7, 6), 16, options={"temporal_mode": "valid"}),
    ConvCase("replicate in space", (1, 8, 3, 5, 7), 9, options={"spatial_mode": "replicate"}),
    ConvCase("reflect in space", (1, 8, 3, 5, 7), 9, options={"spatial_mode": "reflect"}, state=True),
    ConvCase("valid in space", (1, 8, 3, 7, 9), 9, options={"spatial_mode": "valid"}),
    ConvCase("stride in space", (1, 16, 3, 9, 40), 16, options={"stride": (1, 2, 2)}),
    ConvCase("stride in time", (1, 16, 5, 6, 7), 16, options={"stride": (2, 1, 1)}),
    ConvCase("strides, state", (2, 16, 4, 9, 11), 16, state=True, options={"stride": (2, 2, 2)}),
    ConvCase("stride of columns", (1, 16, 2, 5, 37), 16, options={"stride": (1, 1, 2)}),
    ConvCase("dilation", (1, 16, 6, 9, 11), 16, options={"dilation": (2, 2, 3)}),
)


@pytest.fixture(params=UNITS)
def unit(request, monkeypatch):
    """The tiles that bfloat16 is multiplied on."""
    monkeypatch.setattr(native, "cpu_tiles", lambda: request.param)
    return request.param


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_the_oracle(case, unit, seed):
    call = make_conv_call(case, torch.bfloat16, seed)
    comparison = compare_conv(call, "cpu")
    assert comparison.passed, comparison


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.one_of(st.integers(3, 10), st.integers(8, 70)),
    frames=st.integers(1, 6),
    height=st.integers(1, 14),
    width=st.integers(1, 40),
    out_channels=st.integers(1, 70),
    kernel=st.sampled_from([(3, 3, 3), (1, 3, 3), (1, 1, 1), (3, 1, 1), (2, 1, 3)]),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    layout=st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]),
    state=st.booleans(),
    residual=st.booleans(),
    mode=st.sampled_from(["replicate", "zeros"]),
    seed=st.integers(0, 2**31),
)
def test_any_sizes(
    batch, channels, frames, height, width, out_channels, kernel, stride, layout, state, residual, mode, seed
):
    options = {"temporal_mode": mode, "stride": stride}
    shape = (batch, channels, frames, height, width)
    residual = residual and stride == (1, 1, 1)  # a workload's residual has the size of its frames
    case = ConvCase("any", shape, out_channels, kernel, layout, state, True, residual, options)
    call = make_conv_call(case, torch.bfloat16, seed)
    assume(takes_tiles(torch.bfloat16, call["weight"].shape))
    for tiles in UNITS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "cpu_tiles", lambda tiles=tiles: tiles)
            comparison = compare_conv(call, "cpu")
            assert comparison.passed, (tiles, comparison)


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 1, 1), (2, 2, 1)])
def test_a_residual_beside_a_stride(stride, unit, seed):
    call = make_conv_call(ConvCase("strided", (1, 16, 5, 9, 37), 40), torch.bfloat16, seed)
    plain = causal_conv3d(**call, stride=stride, backend="cpu")
    residual = torch.randn_like(plain)
    got = causal_conv3d(**call, stride=stride, residual=residual, backend="cpu").float()
    assert torch.allclose(got, plain.float() + residual.float(), rtol=2**-7, atol=2**-7)


@pairs(
    shape=[(1, 40, 3, 6, 7), (2, 16, 5, 41, 53), (1, 520, 3, 4, 6), (1, 16, 1, 1, 1)],
    kernel=[(3, 3, 3), (1, 3, 3)],
    stride=[1, 2],
)
def test_threads_do_not_change_a_bit(shape, kernel, stride, unit):
    options = {"stride": stride}
    call = make_conv_call(ConvCase("threads", shape, 72, kernel, options=options), torch.bfloat16, 1)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(causal_conv3d(**call, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_stand_in_and_the_instructions_agree(seed):
    """Both add the same products in the same order, up to how the instruction rounds between two of them."""
    if not HAS_AMX:
        pytest.skip("this processor has no AMX")
    call = make_conv_call(ConvCase("both", (1, 96, 3, 11, 13), 40), torch.bfloat16, seed)
    results = []
    for tiles in UNITS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "cpu_tiles", lambda tiles=tiles: tiles)
            results.append(causal_conv3d(**call, backend="cpu").float())
    assert (results[0] - results[1]).norm() <= 2**-10 * results[0].norm()


def test_the_framework_between(unit, seed):
    """oneDNN and our kernels set tiles up on the same threads; neither finds the other's."""
    call = make_conv_call(ConvCase("turns", (1, 64, 3, 12, 14), 64), torch.bfloat16, seed)
    ours, theirs = (causal_conv3d(**call, backend=name) for name in ("cpu", "aten"))
    for _ in range(5):
        assert torch.equal(causal_conv3d(**call, backend="cpu"), ours)
        assert torch.equal(causal_conv3d(**call, backend="aten"), theirs)
        torch.mm(torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16())


def test_junk_in_the_padding_stays_there(unit):
    """A NaN in one pixel reaches the outputs that see it and no other, border and odd channels included."""
    x, weight = torch.randn(1, 9, 3, 6, 7).bfloat16(), torch.randn(10, 9, 3, 3, 3).bfloat16()
    x[0, 4, 1, 0, 6] = float("nan")
    got = causal_conv3d(x, weight, backend="cpu")
    expected = causal_conv3d(x, weight, backend="reference")
    assert torch.equal(got.isnan(), expected.isnan())
    assert expected.isnan().any() and not expected.isnan().all()


@pytest.mark.parametrize("shape", [(1, 16, 3, 8, 10), (2, 40, 1, 7, 9)])
@pytest.mark.parametrize("compress_time", [False, True])
def test_downsampling(shape, compress_time, unit):
    x, weight, bias = torch.randn(shape), torch.randn(24, shape[1], 1, 3, 3) / 12, torch.randn(24)
    args = [t.bfloat16() for t in (x, weight, bias)]
    got = downsample_conv(*args, compress_time=compress_time, backend="cpu").double()
    oracle = downsample_conv(*(t.double() for t in args), compress_time=compress_time)
    reference = downsample_conv(*args, compress_time=compress_time, backend="reference").double()
    assert packed_size() > 0, "the weights were not packed for tiles"
    assert (got - oracle).norm() <= 2 * (reference - oracle).norm()


def test_a_coder_in_bfloat16_is_built_once(unit, monkeypatch):
    """A convolution whose choice did not last had the whole schedule built anew on every call."""
    diffusers = pytest.importorskip("diffusers")
    vae = diffusers.AutoencoderKLCogVideoX(**small_cogvideox_config()).eval().requires_grad_(False).bfloat16()
    bound = []
    bind = Op.bind
    monkeypatch.setattr(Op, "bind", lambda self, *args: bound.append(self.name) or bind(self, *args))
    clip = torch.randn(1, 3, 8, 32, 32).bfloat16()
    with torch.no_grad(), swap(vae):
        for _ in range(4):
            vae.encode(clip)
        bound.clear()
        vae.encode(clip)
    assert not bound


def test_what_is_packed(unit):
    release_packed_weights()
    weight = torch.randn(40, 33, 3, 3, 3).bfloat16()
    call = {"x": torch.randn(1, 33, 3, 6, 6).bfloat16(), "weight": weight}
    first = causal_conv3d(**call, backend="cpu")
    assert packed_size() == 2 * 64 * 64 * 27, "two bytes for each weight of whole tiles"
    weight[3].mul_(2)
    changed = causal_conv3d(**call, backend="cpu")
    assert torch.allclose(changed[:, 3].float(), 2 * first[:, 3].float(), rtol=2**-6)
    release_packed_weights()
    with use_packed_budget(0):  # few pixels: the direct algorithm, which packs for itself
        assert torch.allclose(causal_conv3d(**call, backend="cpu").float(), changed.float(), atol=0.1)
    assert packed_size() == 0


def test_who_takes_them(monkeypatch):
    x, weight = torch.empty(1, 16, 3, 8, 8), torch.empty(16, 16, 3, 3, 3)
    half = ConvArgs(x.bfloat16(), weight.bfloat16())
    assert takes_tiles(torch.bfloat16, weight.shape)
    assert not takes_tiles(torch.float16, weight.shape) and not takes_tiles(torch.bfloat16, (16, 7, 3, 3, 1))
    monkeypatch.setattr(native, "cpu_tiles", lambda: "emulated")
    assert cpu.packing_of(half, half.size).kind == ("tiles", "emulated")
    assert cpu.packing_of(ConvArgs(x, weight), half.size).algorithm == "winograd"
    monkeypatch.undo()
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "portable")
    assert cpu.packing_of(half, half.size).algorithm == "winograd", "one instruction set was asked for"


def test_bad_arguments():
    module = native.cpu_module()
    x, weight = torch.zeros(1, 8, 1, 4, 4), torch.zeros(8, 8, 1, 1, 1)
    packed = torch.zeros(module.tiles_packed_bytes(native.describe(weight)), dtype=torch.uint8)
    isa = module.supported_isas()[0]
    tensors = [native.describe(t) for t in (x.clone(), x, weight)]
    steps = ((1, 1, 1), (1, 1, 1), (0, 0, 0, 0), "valid", "zeros")

    def run(dtype, tiles):
        module.causal_conv3d(
            *tensors, None, None, None, *steps, dtype, isa, 1, packed.data_ptr(), None, tiles
        )

    with pytest.raises(ValueError, match="another dtype than bfloat16"):
        run("float32", "emulated")
    with pytest.raises(ValueError, match="got tiles 'sme', expected amx, emulated or ''"):
        run("bfloat16", "sme")
    if not HAS_AMX:
        with pytest.raises(ValueError, match="no matrix tiles"):
            run("bfloat16", "amx")


def test_explain_names_no_other_reason(unit):
    call = make_conv_call(ConvCase("explained", (1, 16, 3, 8, 8), 16), torch.bfloat16, 0)
    assert explain("causal_conv3d", **call, backend="cpu").chosen == "cpu"


UPSAMPLED = (
    UpsampleCase("one pixel", (1, 8, 1, 1, 1), 9, 1, (1, 2, 2)),
    UpsampleCase("contiguous", (1, 40, 3, 9, 21), 33, 1, (1, 2, 2)),
    UpsampleCase("channels last", (2, 32, 2, 13, 8), 16, 1, (1, 2, 2), layout="channels_last_3d"),
    UpsampleCase("past frames", (1, 16, 4, 5, 7), 40, 3, (1, 2, 2)),
    UpsampleCase("a state", (2, 16, 3, 5, 7), 40, 3, (1, 2, 2), layout="permuted", state=True),
    UpsampleCase("frames repeated", (1, 16, 3, 6, 7), 16, 1, (2, 2, 2)),
    UpsampleCase("several pieces", (1, 16, 2, 34, 41), 16, 1, (1, 2, 2), layout="channels_last_3d"),
    UpsampleCase("folded in time: by Winograd's algorithm", (1, 16, 3, 8, 8), 16, 3, (2, 2, 2)),
)


@pytest.mark.parametrize("case", UPSAMPLED, ids=lambda c: c.name)
def test_upsampling(case, unit, seed):
    comparison = compare_upsample(make_upsample_call(case, torch.bfloat16, seed), "cpu")
    assert comparison.passed, comparison
