"""The native CPU module, called directly, against torch in float64; and which modules serve."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from causalvae_kernels.core import native
from causalvae_kernels.core.errors import BackendUnavailable
from tests.support.cover import pairs

if native._load()[0] is None:
    pytest.skip(f"no native module: {native._load()[1]}", allow_module_level=True)

C = native._load()[0]
ISAS = C.supported_isas()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Largest error of one rounding to the type, relative to the value.
HALF_ULP = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
LAYOUTS = ["contiguous", "channels_last", "sliced", "sliced_channels_last"]


def describe(tensor):
    return None if tensor is None else native.describe(tensor)


def in_layout(tensor, layout):
    """The same values; "sliced" ones are a window into a larger tensor."""
    last = layout.endswith("channels_last")
    memory_format = torch.channels_last_3d if last else torch.contiguous_format
    if not layout.startswith("sliced"):
        return tensor.contiguous(memory_format=memory_format)
    shape = [n + 3 for n in tensor.shape]
    large = torch.full(shape, float("nan")).to(tensor.dtype).contiguous(memory_format=memory_format)
    window = large[tuple(slice(1, 1 + n) for n in tensor.shape)]
    window.copy_(tensor)
    return window


def padded(x, state, past, halo, temporal_mode, spatial_mode):
    """The padded tensor: time first, then space, one axis after the other."""
    if past:
        front = (
            x[:, :, :1].repeat(1, 1, past, 1, 1)
            if temporal_mode == "replicate"
            else x[:, :, :1].new_zeros(())
        )
        front = front.expand(*x.shape[:2], past, *x.shape[3:]) if state is None else state
        x = torch.cat([front, x], dim=2)
    top, bottom, left, right = halo
    if spatial_mode in ("zeros", "valid"):
        return F.pad(x, (left, right, top, bottom))
    flat = x.flatten(0, 1)
    return F.pad(flat, (left, right, top, bottom), mode=spatial_mode).unflatten(0, x.shape[:2])


def values(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(-100, 100, shape, generator=generator).to(dtype)


# ---------------------------------------------------------------- padding

PAD_CASES = [
    # shape, past frames, (top, bottom, left, right)
    ((2, 5, 3, 6, 7), 2, (1, 1, 1, 1)),
    ((1, 3, 1, 5, 4), 2, (0, 0, 0, 0)),
    ((1, 33, 2, 4, 35), 1, (2, 0, 3, 1)),
    ((2, 1, 2, 3, 3), 0, (1, 2, 0, 2)),
    ((1, 34, 1, 13, 35), 2, (1, 1, 1, 1)),  # large enough for two threads and several transposed tiles
]


@pytest.mark.parametrize("spatial_mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("front", ["state", "replicate", "zeros"])
@pytest.mark.parametrize(("shape", "past", "halo"), PAD_CASES)
def test_padding_equals_torch(shape, past, halo, front, spatial_mode):
    x = values(shape, torch.float32)
    state = values((*shape[:2], past, *shape[3:]), torch.float32, 1) if front == "state" else None
    temporal_mode = "zeros" if front == "state" else front
    expected = padded(x, state, past, halo, temporal_mode, spatial_mode)
    body = (..., slice(past, None), slice(halo[0], halo[0] + shape[3]), slice(halo[2], halo[2] + shape[4]))
    for source, target in itertools.product(LAYOUTS, LAYOUTS):
        source_x = in_layout(x, source)
        source_state = None if state is None else in_layout(state, target)
        arguments = (describe(source_state), past, halo, temporal_mode, spatial_mode, 4)
        for threads in (1, 2) if expected.numel() > 20_000 else (1,):  # smaller ones never leave one thread
            out = in_layout(torch.full_like(expected, float("nan")), target)
            C.causal_pad3d(describe(out), describe(source_x), *arguments, threads)
            assert torch.equal(out, expected), f"copy, {source} to {target}, {threads} threads"

            storage = in_layout(torch.full_like(expected, float("nan")), target)
            storage[body] = x
            C.causal_pad3d_(describe(storage), *arguments, threads)
            assert torch.equal(storage, expected), f"in place, {target}, {threads} threads"


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.bfloat16, torch.int32, torch.float64])
def test_padding_copies_any_item(dtype):
    x = values((1, 3, 2, 4, 5), dtype)
    expected = padded(x.double(), None, 2, (1, 1, 1, 1), "replicate", "zeros").to(dtype)
    out = torch.empty_like(expected, memory_format=torch.channels_last_3d)
    C.causal_pad3d(
        describe(out), describe(x), None, 2, (1, 1, 1, 1), "replicate", "zeros", x.element_size(), 2
    )
    assert torch.equal(out, expected)


def test_padding_leaves_the_surroundings_alone():
    large = torch.full((1, 2, 7, 9, 9), 7.0)
    window = large[:, :, 1:6, 2:8, 2:8]
    C.causal_pad3d_(describe(window), None, 2, (1, 1, 1, 1), "zeros", "zeros", 4, 1)
    inside = torch.zeros_like(large, dtype=torch.bool)
    inside[:, :, 1:6, 2:8, 2:8] = True
    assert (large[~inside] == 7).all()


def test_padding_of_nothing():
    empty = torch.empty(0, 3, 4, 5, 6)
    C.causal_pad3d_(describe(empty), None, 2, (1, 1, 1, 1), "replicate", "reflect", 4, 2)


# ---------------------------------------------------------------- convolution

CONV_CASES = {
    # name: (B, Cin, T, H, W), Cout, kernel, stride, dilation
    "plain": ((1, 8, 3, 6, 7), 16, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "first layer": ((2, 3, 2, 5, 9), 37, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "last layer": ((1, 50, 2, 5, 13), 3, (3, 3, 3), (1, 1, 1), (1, 1, 1)),
    "one of everything": ((1, 1, 1, 1, 1), 1, (3, 1, 1), (1, 1, 1), (1, 1, 1)),
    "one pixel": ((2, 70, 1, 1, 1), 5, (2, 1, 1), (1, 1, 1), (1, 1, 1)),
    "frames fewer than taps": ((1, 4, 2, 4, 4), 6, (5, 3, 3), (1, 1, 1), (1, 1, 1)),
    "pointwise": ((1, 130, 2, 3, 29), 65, (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "strided": ((1, 6, 5, 9, 10), 7, (3, 3, 3), (2, 2, 2), (1, 1, 1)),
    "dilated": ((1, 6, 5, 9, 11), 7, (3, 3, 2), (1, 2, 1), (2, 2, 3)),
    "channels in two parts": ((1, 200, 1, 3, 14), 33, (2, 3, 3), (1, 1, 1), (1, 1, 1)),
    "channels a power of two": ((1, 512, 1, 2, 3), 8, (1, 3, 3), (1, 1, 1), (1, 1, 1)),
    "several tiles": ((1, 4, 2, 40, 101), 5, (2, 3, 3), (1, 1, 1), (1, 1, 1)),
}


def convolve(
    x,
    weight,
    bias,
    state,
    residual,
    stride,
    dilation,
    padding,
    temporal_mode,
    spatial_mode,
    isa,
    threads,
    out,
):
    C.causal_conv3d(
        describe(out),
        describe(x),
        describe(weight),
        None if bias is None else bias.data_ptr(),
        describe(state),
        describe(residual),
        stride,
        dilation,
        padding,
        temporal_mode,
        spatial_mode,
        str(x.dtype).removeprefix("torch."),
        isa,
        threads,
    )


def oracle(x, weight, bias, state, residual, stride, dilation, padding, temporal_mode, spatial_mode):
    """The result in float64, and the sum of the magnitudes of its terms."""
    past = 0 if temporal_mode == "valid" else dilation[0] * (weight.shape[2] - 1)
    state = None if state is None else state.double()
    source = padded(x.double(), state, past, padding, temporal_mode, spatial_mode)
    bias = None if bias is None else bias.double()
    result = F.conv3d(source, weight.double(), bias, stride, 0, dilation)
    terms = F.conv3d(
        source.abs(), weight.double().abs(), None if bias is None else bias.abs(), stride, 0, dilation
    )
    if residual is not None:
        result, terms = result + residual.double(), terms + residual.double().abs()
    return result, terms


def conv_inputs(name, dtype, temporal_mode, spatial_mode, extras):
    shape, out_channels, kernel, stride, dilation = CONV_CASES[name]
    padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation[1:], kernel[1:], strict=True) for _ in "ab")
    padding = (0, 0, 0, 0) if spatial_mode == "valid" else padding
    past = 0 if temporal_mode == "valid" else dilation[0] * (kernel[0] - 1)
    x = values(shape, dtype, 1)
    weight = values((out_channels, shape[1], *kernel), dtype, 2)
    bias = values((out_channels,), dtype, 3) if extras else None
    state = values((*shape[:2], past, *shape[3:]), dtype, 4) if extras and temporal_mode != "valid" else None
    arguments = [x, weight, bias, state, None, stride, dilation, padding, temporal_mode, spatial_mode]
    if extras:
        arguments[4] = values(oracle(*arguments)[0].shape, dtype, 5)
    return arguments


def assert_close(out, expected, terms, dtype, label):
    """One rounding to the type, and at most as many float32 roundings as there are terms in a long sum."""
    error = (out.double() - expected).abs()
    limit = HALF_ULP[dtype] * expected.abs() + 2e-6 * terms + 2**-25
    assert torch.isfinite(out).all(), label
    assert (error <= limit).all(), f"{label}: worst error {(error / limit).max():.2f} of the limit"


@pairs(name=CONV_CASES, dtype=DTYPES, isa=ISAS)
def test_convolution_equals_float64(name, dtype, isa):
    for extras in (False, True):
        arguments = conv_inputs(name, dtype, "replicate", "zeros", extras)
        expected, terms = oracle(*arguments)
        reference_bits = None
        for layout, threads in itertools.product(LAYOUTS, (1, 2)):
            x, weight, bias, state, residual, *rest = arguments
            out = in_layout(torch.full(expected.shape, float("nan"), dtype=dtype), layout)
            state = None if state is None else in_layout(state, LAYOUTS[-1 - LAYOUTS.index(layout)])
            residual = None if residual is None else in_layout(residual, layout)
            x, weight = in_layout(x, layout), in_layout(weight, layout)
            convolve(x, weight, bias, state, residual, *rest, isa, threads, out)
            assert_close(out, expected, terms, dtype, f"{layout}, {threads} threads, extras {extras}")
            reference_bits = out.clone() if reference_bits is None else reference_bits
            assert torch.equal(out, reference_bits), f"{layout}, {threads} threads: other bits"


@pairs(
    name=["plain", "strided", "dilated", "several tiles"],
    spatial_mode=["zeros", "replicate", "reflect", "valid"],
    temporal_mode=["replicate", "zeros", "valid"],
    isa=ISAS,
)
def test_convolution_modes(name, spatial_mode, temporal_mode, isa):
    for extras in (False, True):
        arguments = conv_inputs(name, torch.float32, temporal_mode, spatial_mode, extras)
        expected, terms = oracle(*arguments)
        out = torch.full(expected.shape, float("nan"))
        convolve(*arguments, isa, 2, out)
        assert_close(out, expected, terms, torch.float32, f"extras {extras}")


@pairs(
    name=["plain", "strided", "several tiles"],
    padding=[(0, 1, 0, 1), (1, 0, 0, 1), (2, 0, 1, 3)],
    spatial_mode=["zeros", "replicate", "reflect"],
    isa=ISAS,
)
def test_every_side_has_its_own_padding(name, padding, spatial_mode, isa):
    arguments = conv_inputs(name, torch.float32, "replicate", spatial_mode, False)
    arguments[7] = padding
    expected, terms = oracle(*arguments)
    out = torch.full(expected.shape, float("nan"))
    convolve(*arguments, isa, 2, out)
    assert_close(out, expected, terms, torch.float32, name)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_weights_for_other_frames(dtype, isa):
    """Folded weights are not rounded to the dtype of the frames; the bias has that dtype all the same."""
    x, bias = values((1, 8, 2, 5, 6), dtype, 1), values((3,), dtype, 3)
    weight = values((3, 8, 1, 3, 3), torch.float32, 2)
    out = torch.full((1, 3, 2, 3, 4), float("nan"), dtype=dtype)
    tensors = (describe(out), describe(x), describe(weight), bias.data_ptr(), None, None)
    modes = ((1, 1, 1), (1, 1, 1), (0, 0, 0, 0), "valid", "valid", str(dtype).removeprefix("torch."))
    C.causal_conv3d(*tensors, *modes, isa, 1, None, "float32")
    expected, terms = oracle(x, weight, bias, None, None, *modes[:5])
    assert_close(out, expected, terms, dtype, "float32 weights")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversions_round_like_torch(dtype, isa):
    """An identity convolution of every bit pattern, plus a float's worth of residuals that need rounding."""
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    every = every[: every.numel() // 64 * 64].reshape(1, 1, 1, -1, 64)
    one = torch.ones(1, 1, 1, 1, 1, dtype=dtype)
    residual = every.flatten().flip(0).reshape(every.shape)
    for layout, added in itertools.product(["contiguous", "channels_last"], [None, residual]):
        # Two channels, of which the second has no weight, so that channels_last is a layout of its own.
        x = in_layout(torch.cat([every, torch.zeros_like(every)], dim=1), layout)
        weight = torch.cat([one, torch.zeros_like(one)], dim=1).repeat(2, 1, 1, 1, 1)
        extra = None if added is None else in_layout(added.repeat(1, 2, 1, 1, 1), layout)
        out = in_layout(torch.empty_like(x), layout)
        ones = ((1, 1, 1), (1, 1, 1), (0, 0, 0, 0), "valid", "valid")
        convolve(x, weight, None, None, extra, *ones, isa, 2, out)
        expected = every.float() if added is None else every.float() + added.float()
        assert torch.equal(out[:, :1], expected.to(dtype)), f"{layout}, residual {added is not None}"


def test_two_python_threads_do_not_share_scratch():
    arguments = conv_inputs("channels in two parts", torch.float32, "replicate", "zeros", True)
    expected = torch.empty(oracle(*arguments)[0].shape)
    convolve(*arguments, ISAS[0], 1, expected)

    def run(_):
        out = torch.empty_like(expected)
        convolve(*arguments, ISAS[0], 2, out)
        return torch.equal(out, expected)

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(run, range(40)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_pass_through(dtype, isa):
    special = [float("nan"), float("inf"), -float("inf"), 3e38 if dtype == torch.bfloat16 else 6e4]
    x = torch.tensor(special * 5, dtype=dtype).reshape(1, 1, 1, 1, 20)
    out = torch.zeros_like(x)
    ones = ((1, 1, 1), (1, 1, 1), (0, 0, 0, 0), "valid", "valid")
    convolve(x, torch.ones(1, 1, 1, 1, 1, dtype=dtype), None, None, x, *ones, isa, 1, out)
    assert torch.equal(out.nan_to_num(nan=-1.0), (x.float() * 2).to(dtype).nan_to_num(nan=-1.0))


# ---------------------------------------------------------------- refusals


def good_pad():
    out, x = torch.empty(1, 2, 5, 6, 7), torch.empty(1, 2, 3, 4, 5)
    return [describe(out), describe(x), None, 2, (1, 1, 1, 1), "replicate", "zeros", 4, 1]


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, (0, (1, 2, 5, 6, 7), (1, 1, 1, 1, 1)), "out has a null address"),
        (0, (8, (1, 2, 5, 6, 8), (1, 1, 1, 1, 1)), r"out has sizes .* expected \(1, 2, 5, 6, 7\)"),
        (1, (0, (1, 2, 3, 4, 5), (1, 1, 1, 1, 1)), "x has a null address"),
        (1, (8, (1, 2, -3, 4, 5), (1, 1, 1, 1, 1)), "expected none negative"),
        (2, (8, (1, 2, 3, 4, 5), (1, 1, 1, 1, 1)), r"state has sizes .* expected \(1, 2, 2, 4, 5\)"),
        (3, -1, "causal_padding is -1"),
        (4, (1, 1, -1, 3), "spatial_padding is"),
        (5, "valid", "got 'valid', expected replicate or zeros"),
        (6, "circular", "got 'circular', expected zeros, replicate or reflect"),
        (7, 3, "itemsize is 3, expected 1, 2, 4 or 8"),
        (8, 0, "num_threads is 0"),
        (8, 10**6, "expected 1 to 1024"),
    ],
)
def test_padding_refuses(index, value, sentence):
    arguments = good_pad()
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        C.causal_pad3d(*arguments)


def test_padding_refuses_what_has_no_source():
    out = torch.empty(1, 1, 2, 3, 3)
    with pytest.raises(ValueError, match="no frame to replicate"):
        C.causal_pad3d_(describe(out), None, 2, (0, 0, 0, 0), "replicate", "zeros", 4, 1)
    with pytest.raises(ValueError, match="expected room for 3 past frames"):
        C.causal_pad3d_(describe(out), None, 3, (0, 0, 0, 0), "zeros", "zeros", 4, 1)
    with pytest.raises(ValueError, match="expected less than the height 1"):
        C.causal_pad3d_(describe(out), None, 1, (1, 1, 0, 0), "zeros", "reflect", 4, 1)


def good_conv():
    out, x, weight = torch.empty(1, 3, 2, 4, 5), torch.empty(1, 2, 2, 4, 5), torch.empty(3, 2, 3, 3, 3)
    ones = (1, 1, 1)
    tensors = [describe(out), describe(x), describe(weight), None, None, None]
    return [*tensors, ones, ones, (1, 1, 1, 1), "replicate", "zeros", "float32", "portable", 1]


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, (8, (1, 3, 2, 4, 6), (1, 1, 1, 1, 1)), r"out has sizes .* expected \(1, 3, 2, 4, 5\)"),
        (1, (0, (1, 2, 2, 4, 5), (1, 1, 1, 1, 1)), "x has a null address"),
        (1, (8, (1, 2, 0, 4, 5), (1, 1, 1, 1, 1)), "no frame to replicate"),
        (2, (8, (3, 4, 3, 3, 3), (1, 1, 1, 1, 1)), "expected 2 input channels"),
        (2, (8, (3, 2, 0, 3, 3), (1, 1, 1, 1, 1)), "at least one tap"),
        (2, (8, (3, 2, 3, 7, 3), (1, 1, 1, 1, 1)), "expected room for the kernel"),
        (3, 0, "bias has a null address"),
        (4, (8, (1, 2, 1, 4, 5), (1, 1, 1, 1, 1)), r"state has sizes .* expected \(1, 2, 2, 4, 5\)"),
        (5, (8, (1, 2, 2, 4, 5), (1, 1, 1, 1, 1)), r"residual has sizes .* expected \(1, 3, 2, 4, 5\)"),
        (6, (1, 0, 1), "stride is"),
        (7, (0, 1, 1), "dilation is"),
        (8, (1, 1, -1, 1), "spatial_padding is"),
        (9, "wrap", "got 'wrap', expected replicate, zeros or valid"),
        (10, "valid", "expected zeros under spatial mode 'valid'"),
        (11, "float64", "got 'float64', expected float32, bfloat16 or float16"),
        (12, "sse9", "got 'sse9', expected one that this build and processor have"),
        (13, 0, "num_threads is 0"),
    ],
)
def test_convolution_refuses(index, value, sentence):
    arguments = good_conv()
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        C.causal_conv3d(*arguments)


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, (8, (1, 3, 4, 8, 10), (1, 1, 1, 1, 1)), r"out has sizes .* expected \(1, 3, 3, 8, 10\)"),
        (0, (0, (1, 3, 3, 8, 10), (1, 1, 1, 1, 1)), "out has a null address"),
        (2, (8, (3, 2, 3, 3, 3), (1, 1, 1, 1, 1)), "the weight has 3 frames, expected 2"),
        (2, (8, (3, 4, 2, 3, 3), (1, 1, 1, 1, 1)), "expected 2 input channels"),
        (4, (8, (1, 2, 2, 4, 5), (1, 1, 1, 1, 1)), r"state has sizes .* expected \(1, 2, 1, 4, 5\)"),
        (5, "pairs", r"expected \(1, 3, 4, 8, 10\)"),
        (5, "threes", "got doubled_frames 'threes', expected none, pairs or first_single"),
        (12, 0, "the packed weights have a null address"),
    ],
)
def test_upsampling_refuses(index, value, sentence):
    out, x, weight = torch.empty(1, 3, 3, 8, 10), torch.empty(1, 2, 2, 4, 5), torch.empty(3, 2, 2, 3, 3)
    tensors = [describe(out), describe(x), describe(weight), None, None]
    arguments = [*tensors, "first_single", True, "replicate", "zeros", "float32", "portable", 1, 8]
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        C.upsample_conv(*arguments)


# ---------------------------------------------------------------- core/native.py


def test_isas_are_listed_best_first():
    order = ["avx512", "avx2", "portable"]
    for isas in (C.compiled_isas(), ISAS):
        assert isas == [isa for isa in order if isa in isas]
        assert isas[-1] == "portable"
    assert isinstance(C.openmp(), bool)


def test_the_environment_forces_an_isa(monkeypatch):
    monkeypatch.delenv("CAUSALVAE_KERNELS_CPU_ISA", raising=False)
    assert native.cpu_isa() == ISAS[0]
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "portable")
    assert native.cpu_isa() == "portable"
    assert native.why_no_cpu() is None


def test_a_forced_isa_that_is_missing_is_a_sentence(monkeypatch):
    class OnlyPortable:
        compiled_isas = staticmethod(lambda: ["avx2", "portable"])
        supported_isas = staticmethod(lambda: ["portable"])

    monkeypatch.setattr(native, "_load", lambda: (OnlyPortable, None))
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "avx2")
    assert "this processor" in native.why_no_cpu()
    monkeypatch.setenv("CAUSALVAE_KERNELS_CPU_ISA", "avx512")
    assert "this build" in native.why_no_cpu()
    with pytest.raises(BackendUnavailable, match="use one of portable"):
        native.cpu_isa()


def test_a_cuda_module_that_is_missing_is_a_sentence(monkeypatch):
    monkeypatch.setattr(native, "_load", lambda name: (None, f"no {name}"))
    assert native.why_no_cuda(torch.device("cuda")) == f"no {native.CUDA}"
    with pytest.raises(BackendUnavailable, match="no causalvae_kernels._C_cuda"):
        native.cuda_module()


class CudaModule:
    compiled_archs = staticmethod(lambda: ["80", "90a"])


@pytest.fixture
def capability(monkeypatch):
    """Pretend that there is a GPU of this compute capability, and a module for 8.x and 9.0."""

    def pretend(major, minor):
        monkeypatch.setattr(native, "_load", lambda name: (CudaModule, None))
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))
        return torch.device("cuda", 0)

    return pretend


@pytest.mark.parametrize(
    ("version", "arch"),
    [((8, 0), "80"), ((8, 6), "80"), ((8, 9), "80"), ((9, 0), "90a"), ((7, 5), None), ((10, 0), None)],
)
def test_a_gpu_runs_the_code_of_its_generation(version, arch, capability):
    device = capability(*version)
    assert native.cuda_arch(device) == arch
    reason = native.why_no_cuda(device)
    if arch is not None:
        assert reason is None
    else:
        words = f"compute capability {version[0]}.{version[1]}, and the CUDA module holds code for 80, 90a: "
        assert words in reason and f"ARCH_LIST='80;90a;{version[0]}{version[1]}'" in reason


def test_a_hopper_without_its_code_is_told_which_to_build(capability, monkeypatch):
    device = capability(9, 0)
    monkeypatch.setattr(CudaModule, "compiled_archs", staticmethod(lambda: ["80"]))
    assert native.why_no_cuda(device).endswith("CAUSALVAE_KERNELS_CUDA_ARCH_LIST='80;90a'")


def test_a_tensor_that_is_on_no_nvidia_gpu_is_a_sentence(capability, monkeypatch):
    device = capability(9, 0)
    assert native.why_no_cuda(torch.device("cpu")) == "the tensor is on cpu, the kernel runs on an NVIDIA GPU"
    monkeypatch.setattr(torch.version, "cuda", None)  # ROCm calls its devices so as well
    assert "the tensor is on cuda:0, the kernel runs on an NVIDIA GPU" in native.why_no_cuda(device)


# ---------------------------------------------------------------- rates


def test_rates_of_every_isa_and_thread_count():
    for isa in ISAS:
        assert C.fma_rate(isa, 2, 1) > 0 and C.micro_kernel_rate(isa, 2, 1) > 0
    with pytest.raises(ValueError, match="num_threads is 0"):
        C.fma_rate(ISAS[0], 0, 1)
    with pytest.raises(ValueError, match="got 'sse9'"):
        C.micro_kernel_rate("sse9", 1, 1)
