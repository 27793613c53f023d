"""The CUDA norms on the host: every call of the backend `cuda`, carried out by the threads of its kernels.

The stand-in for the module runs the threads' own functions (csrc/common/*_walk.h), one thread after another:
indices, merges and the order of sums are those of the GPU. What a GPU's own exponential and reciprocal give
is not tested.
"""

from __future__ import annotations

import random

import pytest
import torch

from causalvae_kernels import BackendUnavailable, FrameBuffer, explain, group_norm_silu
from causalvae_kernels.core import native
from causalvae_kernels.ops.norms import cuda as cuda_norms
from causalvae_kernels.parity import compare_norm
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import NORM_CASES, NormCase, in_buffer, make_norm_call, with_layout
from tests.support.cuda_norms_stand_in import stand_in

if native.why_no_cpu() is not None:
    pytest.skip(f"the stand-in needs the CPU module: {native.why_no_cpu()}", allow_module_level=True)

LAST = "channels_last_3d"
REPEATED = ("no repeats divide", "three times")  # the spatial norm of these is refused


@pytest.fixture
def module(monkeypatch):
    """The stand-in."""
    return stand_in(monkeypatch)


@pytest.fixture(params=sorted(NORMS))
def op(request):
    """The name of an op."""
    return request.param


# More than one block, tile, chunk or item; tails of each.
MORE = (
    NormCase("several chunks, channels last", (1, 24, 3, 40, 33), 3, (2, 40, 33), LAST, mean=5.0),
    NormCase("several chunks, contiguous", (2, 6, 2, 50, 67), 2, (2, 25, 67)),
    NormCase("a channel to a row of threads", (1, 70, 2, 5, 8), 7, (2, 5, 4)),
    NormCase("odd pixels of a window", (1, 9, 3, 7, 11), 3, (2, 7, 11), "sliced"),
    NormCase("odd channels of a window", (2, 13, 3, 7, 5), 13, (2, 7, 5), "sliced_channels_last"),
    NormCase("more channels than a block has lanes", (1, 2100, 1, 2, 3), 6, layout=LAST),
    NormCase("more channels than registers hold, contiguous", (1, 1030, 1, 2, 5), 5),
    NormCase("200 contiguous", (1, 200, 1, 3, 8), 8, (1, 3, 2)),
    NormCase("600 contiguous", (1, 600, 1, 3, 3), 8),
    NormCase("one channel of few pixels to a group", (3, 4, 1, 1, 2), 4),
)
SPANS = (8, 16, 24, 40, 64, 96, 128, 192, 256, 384, 640, 1024)


@pytest.mark.parametrize("in_place", [False, True], ids=["fresh", "in place"])
@pytest.mark.parametrize("case", (*NORM_CASES, *MORE), ids=lambda c: c.name)
def test_against_the_oracle(case, op, dtype, in_place, module, seed):
    call = make_norm_call(op, case, dtype, seed)
    if op == "spatial_norm_silu" and case.name in REPEATED:
        with pytest.raises(BackendUnavailable, match="the kernel knows only that"):
            NORMS[op][0](**call, backend="cuda")
        return
    comparison = compare_norm(op, call, "cuda", in_place=in_place)
    assert comparison.passed, comparison
    assert len(module.done) == 1


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
@pytest.mark.parametrize("channels", SPANS)
def test_widths_of_models(channels, layout, op, dtype, module, seed):
    """What lanes, units in registers and rows of threads are chosen for; 16 bytes at a time."""
    case = NormCase("width", (1, channels, 2, 2, 8), 8, (2, 1, 2), layout)
    comparison = compare_norm(op, make_norm_call(op, case, dtype, seed), "cuda")
    assert comparison.passed, comparison
    assert module.done[0][:2] == (True, True)


# ---------------------------------------------------------------- how memory is accessed


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
@pytest.mark.parametrize("halo", [(0, 0, 0, 0), (1, 1, 4, 4)])
def test_a_frame_buffer_is_accessed_sixteen_bytes_at_a_time(layout, halo, op, module, seed):
    case = NormCase("body", (1, 16, 4, 6, 8), 4, (2, 3, 4), layout)
    call = make_norm_call(op, case, torch.bfloat16 if layout == LAST else torch.float32, seed)
    x = call.pop("x")
    buffer, source = in_buffer(torch.zeros_like(x), 2, halo), in_buffer(x, 2, halo)
    NORMS[op][1](buffer, source.body, **call, backend="cuda")
    assert module.done[0][:2] == (True, True)


@pytest.mark.parametrize(
    ("shape", "layout", "shift"),
    [
        ((1, 12, 2, 3, 4), LAST, 0),  # 24 bytes of channels
        ((1, 16, 2, 3, 4), LAST, 1),
        ((1, 16, 1, 5, 5), "contiguous", 0),
        ((1, 16, 2, 4, 4), "contiguous", 1),
        ((1, 16, 2, 4, 7), "permuted", 0),
    ],
)
def test_anything_else_element_by_element(shape, layout, shift, op, module, seed):
    call = make_norm_call(op, NormCase("", shape, 4, layout=layout), torch.bfloat16, seed)
    if shift:  # no address of 16 bytes
        x = call["x"]
        memory = torch.empty(x.numel() + shift, dtype=x.dtype)[shift:]
        call["x"] = memory.as_strided(x.shape, x.stride()).copy_(x)
    comparison = compare_norm(op, call, "cuda")
    assert comparison.passed, comparison
    assert module.done[0][0] is False


def test_the_statistics_keep_words_whatever_the_destination(module, seed):
    call = make_norm_call(
        "group_norm_silu", NormCase("", (1, 16, 2, 3, 4), 4, layout=LAST), torch.float16, seed
    )
    buffer = FrameBuffer(torch.empty(1, 16, 2, 3, 4, dtype=torch.float16), 0)
    NORMS["group_norm_silu"][1](buffer, **call, backend="cuda")
    assert module.done[0][:2] == (True, False)


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
def test_the_bits_do_not_depend_on_where_tensors_lie(layout, op, dtype, module, seed):
    """Words or elements, whole or cut out of something larger: the sums run in the same order."""
    call = make_norm_call(op, NormCase("", (2, 48, 3, 6, 16), 4, (2, 3, 4), layout), dtype, seed)
    expected = NORMS[op][0](**call, backend="cuda")
    x = call.pop("x")
    for halo in ((0, 0, 0, 0), (1, 0, 3, 2)):
        buffer = in_buffer(x, 1, halo)
        NORMS[op][1](buffer, buffer.body, **call, backend="cuda")
        assert torch.equal(buffer.body, expected)
    memory = torch.empty(x.numel() + 1, dtype=dtype)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert torch.equal(NORMS[op][0](memory, **call, backend="cuda"), expected)
    assert {done[0] for done in module.done} == {True, False}


@pytest.mark.parametrize("into", [torch.contiguous_format, torch.channels_last_3d], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", LAST, "sliced", "permuted"])
def test_any_layout_into_any_other(layout, into, op, module, seed):
    call = make_norm_call(op, NormCase("", (2, 20, 3, 6, 7), 4, (2, 3, 7), layout), torch.float32, seed)
    expected = NORMS[op][0](**call, backend="cuda")
    buffer = FrameBuffer.empty((2, 20, 3, 6, 7), head_room=2, halo=(1, 0, 1, 2), memory_format=into)
    NORMS[op][1](buffer, **call, backend="cuda")
    assert torch.equal(buffer.body, expected)


# ---------------------------------------------------------------- digits


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (3.0, 0.1), (100.0, 0.1), (-2000.0, 1.0)])
def test_no_digit_is_lost_far_from_zero(mean, deviation, layout, module, seed):
    """Against the truth, as far as float32 can tell it of numbers that are rounded to float32."""
    case = NormCase("", (1, 32, 4, 24, 30), 4, layout=layout, mean=mean, deviation=deviation, silu=False)
    call = make_norm_call("group_norm_silu", case, torch.float32, seed)
    got = group_norm_silu(**call, backend="cuda").double()
    oracle = group_norm_silu(**{k: v.double() if torch.is_tensor(v) else v for k, v in call.items()})
    assert (got - oracle).norm() / oracle.norm() < 1.2e-7


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
def test_a_first_value_far_from_all_others_costs_nothing(layout, module, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 8, 3, 30, 40, generator=generator)
    x[:, :, 0, 0, 0] = 1e4
    x = with_layout(x, layout)
    got = group_norm_silu(x, 2, silu=False, backend="cuda").double()
    oracle = group_norm_silu(x.double(), 2, silu=False, backend="reference")
    others = torch.ones_like(x, dtype=torch.bool)
    others[:, :, 0, 0, 0] = False
    assert (got - oracle)[others].square().mean().sqrt() < 6e-8  # of numbers whose deviation is 1


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_wans_cast_is_kept(half, module, seed):
    """Rounded between the division and the scale, as the model does."""
    call = make_norm_call("rms_norm_silu", NormCase("", (1, 96, 2, 6, 7), 1, silu=False), half, seed)
    call |= {"weight": torch.ones_like(call["weight"]), "bias": None}
    got = NORMS["rms_norm_silu"][0](**call, backend="cuda")
    x = call["x"].float()
    normalised = x / x.norm(dim=1, keepdim=True)
    expected, uncast = ((n.float() * 96**0.5).to(half) for n in (normalised.to(half), normalised))
    assert (got != expected).double().mean() < 2e-3 < (uncast != expected).double().mean()


# ---------------------------------------------------------------- what is refused, and counted


def test_too_many_pixels_and_blocks_are_sentences(op, module):
    call = make_norm_call(op, NormCase("", (1, 1, 1, 4, 4), 1), torch.float32, 0)
    one = torch.zeros(())
    for shape, words in (
        ((1, 1, 2**9, 2**11, 2**11), "a batch entry has 2147483648 pixels"),
        ((2**20, 2**11, 1, 1, 1), r"takes up to 2147483648 blocks, a launch has fewer .* split the batch"),
    ):
        changed = {"x": one.expand(shape)}
        for name in ("weight", "bias"):
            changed[name] = torch.zeros(shape[1])
        for name in {"scale", "shift"} & set(call):
            changed[name] = one.expand(shape)
        with pytest.raises(BackendUnavailable, match=words):
            NORMS[op][0](**(call | changed), backend="cuda")


def test_the_count_of_blocks_is_no_smaller_than_that_of_the_plan(op, dtype, module, seed, monkeypatch):
    draw = random.Random(seed)
    for _ in range(12):
        channels = draw.choice([1, 2, 3, 7, 16, 33, 70, 300, 1500])
        size = (
            draw.choice([1, 2]),
            channels,
            draw.choice([1, 2, 3]),
            draw.choice([1, 5]),
            draw.choice([1, 4, 9]),
        )
        layout = draw.choice(["contiguous", LAST, "permuted"])
        call = make_norm_call(op, NormCase("", size, 1, layout=layout), dtype, seed)
        NORMS[op][0](**call, backend="cuda")
        blocks = module.done[-1][2]
        if op != "rms_norm_silu":  # that of all three launches: more than any of them has
            blocks = -(-blocks // 3)
        with monkeypatch.context() as patch:
            patch.setattr(cuda_norms, "_LIMIT", blocks)
            assert explain(op, **call, backend="cuda").chosen != "cuda"


def test_dtypes_tiers_and_devices_are_sentences(op, monkeypatch):
    call = make_norm_call(op, NORM_CASES[0], torch.float64, 0)
    with pytest.raises(BackendUnavailable, match="knows float32, bfloat16 and float16, not torch.float64"):
        NORMS[op][0](**call, backend="cuda")
    call = make_norm_call(op, NORM_CASES[0], torch.float32, 0)
    with pytest.raises(BackendUnavailable, match="precision 'exact'"):
        NORMS[op][0](**call, backend="cuda", precision="exact")
    expected = native.why_no_cuda(torch.device("cpu"))
    with pytest.raises(BackendUnavailable) as caught:
        NORMS[op][0](**call, backend="cuda")
    assert expected in str(caught.value)


def test_auto_does_not_take_it_unmeasured(op, module):
    call = make_norm_call(op, NORM_CASES[3], torch.bfloat16, 0)
    assert explain(op, **call).chosen != "cuda"


@pytest.mark.parametrize("parameters", [torch.float32, None], ids=["float32", "as x"])
@pytest.mark.parametrize("given", [("weight",), ("bias",), ()], ids=str)
def test_parameters_of_either_dtype_or_none(given, parameters, module, seed):
    call = make_norm_call("group_norm_silu", NORM_CASES[3], torch.bfloat16, seed)
    for name in ("weight", "bias"):
        call[name] = call[name].to(parameters or call["x"].dtype) if name in given else None
    comparison = compare_norm("group_norm_silu", call, "cuda")
    assert comparison.passed, comparison


def test_parameters_that_are_every_other_element(op, module, seed):
    call = make_norm_call(op, NORM_CASES[3], torch.float16, seed)
    for name in ("weight", "bias"):
        call[name] = torch.stack((call[name], call[name]), 1).flatten()[::2]
    comparison = compare_norm(op, call, "cuda")
    assert comparison.passed, comparison


@pytest.mark.parametrize("layout", [LAST, "contiguous"])
def test_strides_beyond_32_bits(layout, op, module, seed):
    far = 2**31 + 64
    memory = torch.empty(far + 2**10, dtype=torch.bfloat16)  # only what is written below becomes real
    shape = (1, 24, 2, 4, 5)
    x = memory.as_strided(shape, (1, 1, far, 120, 24) if layout == LAST else (1, 20, far, 5, 1))
    call = make_norm_call(op, NormCase("", shape, 4), torch.bfloat16, seed)
    near = call.pop("x")
    x.copy_(near)
    expected = NORMS[op][0](
        near.contiguous(memory_format=torch.channels_last_3d) if layout == LAST else near,
        **call,
        backend="cuda",
    )
    NORMS[op][1](FrameBuffer(x, 0), x, **call, backend="cuda")
    assert torch.equal(x, expected)


# ---------------------------------------------------------------- what the module refuses


def tensor(*sizes, address=64):
    """A tensor that is looked at but never read."""
    return address, sizes, (1,) * 5


def good_group_norm():
    x, latent = tensor(1, 4, 5, 4, 6), tensor(1, 4, 3, 2, 6)
    return [x, x, latent, latent, None, None, "float32", 2, 1e-5, True, True, (2, 2, 1), "float32", 64, 10**6]


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, tensor(1, 4, 5, 4, 7), r"out has sizes .* expected \(1, 4, 5, 4, 6\)"),
        (1, tensor(1, 4, 5, 4, 6, address=0), "x has a null address"),
        (2, tensor(1, 4, 3, 2, 5), r"scale has sizes .* divided by the repeats \(2, 2, 1\)"),
        (2, None, "one of scale and shift"),
        (4, 0, "weight has a null address"),
        (5, 0, "bias has a null address"),
        (6, "float64", "got 'float64'"),
        (7, 3, "expected a divisor of 4 channels"),
        (8, float("nan"), "eps is"),
        (11, (2, 0, 1), "repeats are"),
        (12, "int8", "got 'int8', expected float32, bfloat16 or float16"),
        (13, 0, "at a multiple of 16 bytes"),
        (13, 72, "at a multiple of 16 bytes"),
        (14, 11, "the workspace has room for 11 numbers, expected 24"),
    ],
)
def test_the_group_norm_refuses(index, value, sentence):
    arguments = good_group_norm()
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        native.cpu_module().index.rehearse_group_norm(*arguments)


def test_repeats_are_powers_of_two():
    arguments = good_group_norm()
    arguments[2] = arguments[3] = tensor(1, 4, 5, 4, 2)
    arguments[10], arguments[11] = False, (1, 1, 3)
    with pytest.raises(ValueError, match=r"repeats are \(1, 1, 3\), expected powers of two"):
        native.cpu_module().index.rehearse_group_norm(*arguments)


@pytest.mark.parametrize(
    ("index", "value", "sentence"),
    [
        (0, tensor(1, 4, 5, 4, 7), "out has sizes"),
        (1, tensor(1, 4, 2**10, 2**11, 2**10), "out has sizes"),
        (2, 0, "weight has a null address"),
        (3, 0, "bias has a null address"),
        (4, -1.0, "eps is"),
        (6, "int8", "got 'int8'"),
    ],
)
def test_the_rms_norm_refuses(index, value, sentence):
    x = tensor(1, 4, 5, 4, 6)
    arguments = [x, x, 64, None, 0.0, True, "float32"]
    arguments[index] = value
    with pytest.raises(ValueError, match=sentence):
        native.cpu_module().index.rehearse_rms_norm(*arguments)


def test_more_pixels_than_are_counted_are_refused():
    x = tensor(1, 4, 2**10, 2**11, 2**10)
    with pytest.raises(ValueError, match=r"fewer than 2\^31 channels, and pixels of a batch entry"):
        native.cpu_module().index.rehearse_rms_norm(x, x, 64, None, 0.0, True, "float32")
    with pytest.raises(ValueError, match=r"fewer than 2\^31 channels, and pixels of a batch entry"):
        native.cpu_module().index.group_norm_workspace(x, "float32")
