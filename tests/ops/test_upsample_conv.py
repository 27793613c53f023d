"""`upsample_conv`: every backend against the fp64 oracle, chunks, gradients, tracing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import (
    FrameBuffer,
    InvalidInput,
    causal_conv3d,
    packed_size,
    release_packed_weights,
    upsample_conv,
    use_packed_budget,
)
from causalvae_kernels.core import native
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.causal_conv3d.spec import error_factor
from causalvae_kernels.ops.upsample_conv import spec
from causalvae_kernels.ops.upsample_conv.backends import cpu
from causalvae_kernels.parity import compare, compare_upsample, run_in_chunks
from causalvae_kernels.workloads import UPSAMPLE_CASES, UpsampleCase, make_upsample_call
from tests.support.backends import BACKENDS, DTYPES, NAMES
from tests.support.cover import pairs, quick
from tests.support.windows import windows_for

pytestmark = pytest.mark.skipif(interpreting(), reason="slow there: test_resampling_triton.py")

UPSAMPLE = torch.ops.causalvae_kernels.upsample_conv.default
UPSAMPLE_INTO = torch.ops.causalvae_kernels.upsample_conv.out
BOTH, TIME, SPACE = (2, 2, 2), (2, 1, 1), (1, 2, 2)


@pairs(case=UPSAMPLE_CASES, backend=BACKENDS, dtype=DTYPES)
@pytest.mark.every_instruction_set
def test_backend_against_the_oracle(case, dtype, backend, seed):
    comparison = compare_upsample(make_upsample_call(case, dtype, seed), backend)
    assert comparison.passed, comparison


@pairs(case=UPSAMPLE_CASES, dtype=DTYPES[:2])
def test_aten_in_the_exact_tier_gives_the_bits_of_the_reference(case, dtype, seed):
    comparison = compare_upsample(make_upsample_call(case, dtype, seed), "aten", precision="exact")
    assert comparison.passed, comparison


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_sizes(data):
    draw = data.draw
    scale, kernel_frames = draw(st.sampled_from(spec.SCALES)), draw(st.sampled_from([1, 3]))
    shape = [draw(st.integers(low, high)) for low, high in ((1, 2), (1, 20), (1, 6), (1, 13), (1, 13))]
    state = draw(st.booleans()) and kernel_frames == 3
    options = {"spatial_mode": draw(st.sampled_from(spec.SPATIAL_MODES))}
    options["first_chunk"] = False if state else draw(st.booleans())
    if scale[0] == 1:
        options["temporal_mode"] = draw(st.sampled_from(spec.TEMPORAL_MODES))
    layout = draw(st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]))
    case = UpsampleCase("any", tuple(shape), draw(st.integers(1, 36)), kernel_frames, scale, layout, state)
    call = make_upsample_call(
        case, draw(st.sampled_from([torch.float32, torch.bfloat16])), draw(st.integers(0, 2**31))
    )
    for name in NAMES:
        comparison = compare_upsample(call | options, name)
        assert comparison.passed, (name, comparison)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_reference_is_what_hunyuanvideo_does(frames, seed):
    """HunyuanVideoUpsampleCausal3D, written out: the first frame apart, then replicate padding."""
    torch.manual_seed(seed)
    x, weight = torch.randn(1, 3, frames, 4, 5), torch.randn(2, 3, 3, 3, 3)
    wide = F.interpolate(x[:, :, 0], scale_factor=(2, 2), mode="nearest").unsqueeze(2)
    if frames > 1:
        rest = F.interpolate(x[:, :, 1:].contiguous(), scale_factor=(2, 2, 2), mode="nearest")
        wide = torch.cat((wide, rest), dim=2)
    expected = F.conv3d(F.pad(wide, (1, 1, 1, 1, 2, 0), mode="replicate"), weight)
    got = upsample_conv(x, weight, scale=2, spatial_mode="replicate", backend="reference")
    assert torch.equal(got, expected)


@pytest.mark.parametrize("frames", [1, 2, 3, 8])
@pytest.mark.parametrize("compress_time", [False, True])
def test_reference_is_what_cogvideox_does(frames, compress_time, seed):
    upsampling = pytest.importorskip("diffusers.models.upsampling")
    torch.manual_seed(seed)
    module, x = (
        upsampling.CogVideoXUpsample3D(3, 5, compress_time=compress_time),
        torch.randn(2, 3, frames, 4, 5),
    )
    with torch.no_grad():
        got = upsample_conv(
            x,
            module.conv.weight.unsqueeze(2),
            module.conv.bias,
            scale=BOTH if compress_time else SPACE,
            first_chunk=frames % 2 == 1,
            backend="reference",
        )
        assert torch.allclose(got, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first_chunk", [True, False])
def test_doubled_frames_are_those_of_a_causal_convolution(first_chunk, backend, seed):
    """The scale (2, 1, 1): `causal_conv3d` over the frames as they are after doubling, with their state."""
    torch.manual_seed(seed)
    x, past = torch.randn(2, 9, 5, 8, 8), None if first_chunk else torch.randn(2, 9, 1, 8, 8)
    weight, bias = torch.randn(8, 9, 3, 3, 3), torch.randn(8)
    doubled = x.repeat_interleave(2, dim=2)[:, :, int(first_chunk) :]
    state = None if first_chunk else past.expand(-1, -1, 2, -1, -1)
    expected = causal_conv3d(doubled, weight, bias, initial_state=state, backend="reference")
    given = {"scale": TIME, "first_chunk": first_chunk, "initial_state": past}
    got = upsample_conv(x, weight, bias, **given, backend=backend)
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pairs(
    chunks=[(7,), (1,) * 7, (1, 2, 4), (4, 3)],
    scale=spec.SCALES,
    kernel_frames=[1, 3],
    backend=BACKENDS,
)
def test_chunks_equal_the_whole(chunks, scale, kernel_frames, backend, seed):
    case = UpsampleCase("chunks", (2, 9, 7, 4, 8), 9, kernel_frames, scale)
    call = make_upsample_call(case, torch.float32, seed)
    x, weight, bias = call.pop("x"), call.pop("weight"), call.pop("bias")
    firsts = iter([True] + [False] * 7)

    def op(chunk, initial_state):
        first = next(firsts)
        past = None if first else initial_state
        given = {**call, "first_chunk": first, "initial_state": past}
        return upsample_conv(chunk, weight, bias, **given, return_final_state=True, backend=backend)

    got, state = run_in_chunks(op, x, chunks)
    whole, last = upsample_conv(x, weight, bias, **call, return_final_state=True, backend=backend)
    assert torch.equal(state, last)
    oracle = upsample_conv(x.double(), weight.double(), bias.double(), **call, backend="reference")
    assert compare(got, whole, oracle, *error_factor(torch.float32, winograd=True)).passed


GRADIENTS = {
    "space": (1, SPACE, {}),
    "space, three frames, state": (3, SPACE, {"state": True}),
    "frames repeated": (1, BOTH, {"first_chunk": False}),
    "time and space": (3, BOTH, {"spatial_mode": "replicate"}),
    "time and space, state": (3, BOTH, {"state": True, "first_chunk": False}),
    "time": (3, TIME, {}),
}


@pytest.mark.parametrize(("kernel_frames", "scale", "options"), GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_everything(kernel_frames, scale, options):
    options = dict(options)
    with_state = options.pop("state", False)
    past = spec.state_frames(kernel_frames, scale)
    shapes = ((1, 2, 2, 3, 2), (2, 2, kernel_frames, 3, 3), (2,), (1, 2, past, 3, 2))
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes][: 3 + with_state]

    def conv(x, weight, bias, *state):
        return upsample_conv(
            x,
            weight,
            bias,
            initial_state=state[0] if state else None,
            scale=scale,
            return_final_state=past > 0,
            **options,
        )

    assert torch.autograd.gradcheck(conv, tensors)
    assert torch.autograd.gradgradcheck(conv, tensors, fast_mode=True)


@pytest.mark.exhaustive  # tests/ops/test_declaration.py checks one layout of every op
@pytest.mark.one_backend
@pairs(layout=["contiguous", "channels_last_3d", "sliced"], scale=spec.SCALES, backend=BACKENDS)
def test_opcheck(layout, scale, backend):
    call = make_upsample_call(UpsampleCase("o", (1, 8, 3, 8, 8), 9, 3, scale, layout), torch.float32, 1)
    arguments = (call["x"], call["weight"], call["bias"], None, scale, True, "replicate", "zeros")
    torch.library.opcheck(UPSAMPLE, (*arguments, backend, "high"))


@pytest.mark.one_backend
@pytest.mark.parametrize("channels_last", quick([False, True], [True]))
def test_compiles_without_a_graph_break(channels_last, backend):
    x, weight = torch.randn(1, 8, 3, 8, 8), torch.randn(9, 8, 3, 3, 3)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)

    def step(x):
        return upsample_conv(x * 2, weight, scale=BOTH, return_final_state=True, backend=backend)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for frames in (x, torch.cat([x, x], dim=2)):
        for got, expected in zip(compiled(frames), step(frames), strict=True):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
            assert got.stride() == expected.stride()


@pytest.mark.one_backend
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_frameworks_dtypes(low, backend):
    x, weight, past = torch.randn(1, 8, 3, 8, 8), torch.randn(9, 8, 3, 3, 3), torch.randn(1, 8, 1, 8, 8)
    with torch.autocast("cpu", dtype=low):
        given = {"scale": BOTH, "first_chunk": False, "initial_state": past, "return_final_state": True}
        got, state = upsample_conv(x, weight, **given, backend=backend)
    expected = upsample_conv(x, weight, **given, backend="reference")[0]
    assert got.dtype == low and state.dtype == torch.float32 and torch.equal(state, x[:, :, -1:])
    assert (got - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(4, 3, 5, 5)}, "five dimensions"),
        ({"weight": torch.zeros(2, 3, 3, 3, 3)}, "expects 3"),
        ({"weight": torch.zeros(2, 4, 2, 3, 3)}, r"expected \(1, 3, 3\) or \(3, 3, 3\)"),
        ({"weight": torch.zeros(2, 4, 3, 3, 3).double()}, "one dtype; convert"),
        ({"scale": (1, 2, 1)}, r"expected one of \(1, 2, 2\)"),
        ({"bias": torch.zeros(3)}, r"expected \(2,\)"),
        ({"spatial_mode": "reflect"}, "expected one of 'zeros', 'replicate'"),
        ({"scale": 2, "temporal_mode": "zeros"}, "expected 'replicate'"),
        ({"initial_state": torch.zeros(1, 4, 1, 5, 5)}, r"expected \(1, 4, 2, 5, 5\)"),
        ({"scale": 2, "initial_state": torch.zeros(1, 4, 2, 5, 5)}, r"expected \(1, 4, 1, 5, 5\)"),
        ({"scale": 2, "initial_state": torch.zeros(1, 4, 1, 5, 5)}, "first_chunk=False"),
    ],
)
def test_bad_input_gets_a_sentence(change, words):
    call = {"x": torch.zeros(1, 4, 3, 5, 5), "weight": torch.zeros(2, 4, 3, 3, 3)} | change
    with pytest.raises(InvalidInput, match=words):
        upsample_conv(**call)


def test_flops_and_bytes():
    # Four taps of nine for each output pixel; with time doubled 8 of 27.
    assert spec.flops((1, 4, 5, 6, 7), (8, 4, 1, 3, 3), SPACE) == 2 * 8 * 4 * 4 * 5 * 12 * 14
    assert spec.flops((2, 4, 5, 6, 7), (8, 4, 3, 3, 3), BOTH) == 2 * 2 * 8 * 4 * 8 * 9 * 12 * 14
    assert spec.flops((1, 4, 5, 6, 7), (8, 4, 3, 3, 3), TIME, False) == 2 * 8 * 4 * 18 * 10 * 6 * 7
    # Repeated frames are computed once.
    assert spec.flops((1, 4, 5, 6, 7), (8, 4, 1, 3, 3), BOTH) == 2 * 8 * 4 * 4 * 5 * 12 * 14
    assert spec.bytes_moved((1, 4, 5, 6, 7), (8, 4, 3, 3, 3), 2, BOTH) == 2 * (4 * 210 + 8 * 9 * 168 + 864)


# ---------------------------------------------------------------- into memory that is there


@pairs(case=UPSAMPLE_CASES, backend=BACKENDS, dtype=DTYPES)
@pytest.mark.every_instruction_set
def test_into_a_window(case, dtype, backend, seed):
    """The bits of the call that allocates; nothing around the output is touched."""
    call = make_upsample_call(case, dtype, seed)
    expected, state = upsample_conv(**call, return_final_state=True, backend=backend)
    for out, untouched in windows_for(expected):
        got, last = upsample_conv(**call, out=out, return_final_state=True, backend=backend)
        assert got is out and torch.equal(last, state)
        assert upsample_conv(**call, out=out, backend=backend) is out
        assert torch.equal(getattr(out, "body", out), expected)
        assert untouched()


@pytest.mark.parametrize("scale", spec.SCALES, ids=str)
@pytest.mark.parametrize("kernel_frames", [1, 3])
def test_into_a_window_by_each_algorithm(kernel_frames, scale, backend, seed):
    """Frames of 8x8 go by Winograd's algorithm where the backend has it, with 3 channels directly."""
    for channels in (8, 3):
        case = UpsampleCase("window", (2, channels, 3, 8, 8), 9, kernel_frames, scale)
        call = make_upsample_call(case, torch.float32, seed)
        expected = upsample_conv(**call, backend=backend)
        for out, untouched in windows_for(expected):
            upsample_conv(**call, out=out, backend=backend)
            assert torch.equal(getattr(out, "body", out), expected) and untouched()


def test_out_is_checked(backend):
    x, weight, bias = torch.randn(1, 4, 3, 5, 5), torch.randn(4, 4, 3, 3, 3), torch.randn(4)
    state = torch.randn(1, 4, 2, 5, 5)
    space = torch.randn(1, 4, 3, 10, 10)
    reads = {
        "x": space[..., 5:, 5:],
        "weight": space.flatten()[: weight.numel()].view(weight.shape),
        "bias": space[0, :, 0, 0, 0],
        "initial_state": space[:, :, :2, :5, :5],
    }
    before = space.clone()
    for name, read in reads.items():
        call = {"x": x, "weight": weight, "bias": bias, "initial_state": state, "first_chunk": False}
        with pytest.raises(InvalidInput, match=f"upsample_conv: out shares memory with {name}, "):
            upsample_conv(**call | {name: read}, out=space, backend=backend)
    assert torch.equal(space, before)
    with pytest.raises(InvalidInput, match="elements share memory, expected a place for each"):
        upsample_conv(x, weight, out=torch.zeros(1).expand(space.shape), backend=backend)
    with pytest.raises(InvalidInput, match=r"out has shape \(1, 4, 3, 10, 9\), expected \(1, 4, 3, 10, 10\)"):
        upsample_conv(x, weight, out=space[..., :9], backend=backend)
    with pytest.raises(InvalidInput, match="out is torch.float64 on cpu, expected torch.float32"):
        upsample_conv(x, weight, out=space.double(), backend=backend)
    with pytest.raises(InvalidInput, match="requires a gradient"):
        upsample_conv(x, weight.requires_grad_(), out=space, backend=backend)
    weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match="expected no autocast"):
        upsample_conv(x, weight, out=space, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):  # which changes nothing here
        half = upsample_conv(x.bfloat16(), weight.bfloat16(), out=space.bfloat16(), backend=backend)
    assert half.dtype == torch.bfloat16


@pytest.mark.exhaustive
@pytest.mark.one_backend
def test_opcheck_into(backend):
    call = make_upsample_call(UpsampleCase("o", (1, 8, 3, 8, 8), 9, 3, BOTH), torch.float32, 1)
    arguments = (call["x"], call["weight"], call["bias"], None, BOTH, True, "replicate", "zeros")
    out = torch.zeros(1, 9, 5, 16, 16)
    torch.library.opcheck(UPSAMPLE_INTO, (out, *arguments, backend, "high"))
    UPSAMPLE_INTO(out, *arguments, backend, "high")
    assert torch.equal(out, upsample_conv(**call, backend=backend))


@pytest.mark.one_backend
def test_compiles_into_a_buffer(backend):
    x, weight = torch.randn(1, 8, 3, 8, 8), torch.randn(9, 8, 3, 3, 3)

    def step(x, storage):
        buffer = FrameBuffer(storage, 2, (1, 0, 0, 1))
        upsample_conv(x * 2, weight, scale=BOTH, out=buffer, backend=backend)
        return buffer.body + 1

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    storages = [torch.full((1, 9, 7, 17, 17), 7.0) for _ in range(2)]
    got, expected = compiled(x, storages[0]), step(x, storages[1])
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(*storages, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the backend cpu

needs_native = pytest.mark.skipif(native.why_no_cpu() is not None, reason=str(native.why_no_cpu()))


@needs_native
@pytest.mark.parametrize("kernel_frames", [1, 3])
@pytest.mark.parametrize("scale", spec.SCALES, ids=str)
def test_vanishing_planes_are_not_packed(kernel_frames, scale):
    """Packed weights of exactly the stated size, NaN behind them: whatever else were read would show."""
    module, isa = native.cpu_module(), native.cpu_isa()
    call = make_upsample_call(UpsampleCase("n", (1, 8, 3, 8, 8), 32, kernel_frames, scale), torch.float32, 5)
    size = cpu.winograd_packing(call["weight"], scale, isa).size
    doubles_time = scale[0] == 2 and kernel_frames == 3
    slices = 3 if doubles_time else {1: 1, 3: 4}[kernel_frames]
    kernels, planes = (4, 25) if scale[1] == 2 else (1, 36)
    assert size == 4 * kernels * planes * slices * 8 * 32
    kept = cpu._pack(call["weight"], scale, size, isa)
    packed = torch.cat([kept, torch.full_like(kept, torch.nan)])
    assert kept.isfinite().all()
    expected = upsample_conv(**call, backend="reference")
    once = slice(None, None, 2 if scale[0] == 2 and kernel_frames == 1 else 1)
    got = torch.empty_like(expected[:, :, once])
    sizes = call["weight"][:, :, : 2 if doubles_time else kernel_frames]
    tensors = [native.describe(t) for t in (got, call["x"], sizes)]
    words = ("first_single" if doubles_time else "none", scale[1] == 2, "replicate", "zeros", "float32")

    def run():
        given = (*tensors, call["bias"].data_ptr(), None, *words, isa, 1, packed.data_ptr())
        module.upsample_conv(*given)
        return torch.allclose(got, expected[:, :, once], rtol=1e-4, atol=1e-4)

    assert run()
    for plane in range(kernels * planes * slices):
        before = packed.clone()
        packed[plane * 8 * 32 : (plane + 1) * 8 * 32] = torch.nan
        assert not run(), "a plane that is packed was not read"
        packed.copy_(before)


@needs_native
def test_zero_taps_are_checked():
    weight = native.describe(torch.zeros(8, 8, 1, 3, 3))
    with pytest.raises(ValueError, match="expected -1 for none, 0 or 2"):
        native.cpu_module().winograd_packed_floats(weight, native.cpu_isa(), (1, -1))


@needs_native
def test_sums_of_weights_are_not_rounded():
    """w1 + w2 cancels but for a hundredth; rounded to bfloat16 that would be off by a third."""
    x = torch.ones(1, 8, 1, 8, 8, dtype=torch.bfloat16)
    weight = torch.zeros(8, 8, 1, 3, 3, dtype=torch.bfloat16)
    weight[..., 1, 1], weight[..., 1, 2] = 1.0, -0.99609375
    weight[..., 2, 2] = 0.0001220703125
    for shape in ((8, 8), (3, 3)):  # by Winograd's algorithm, and directly
        frames = x[..., : shape[0], : shape[1]]
        comparison = compare_upsample({"x": frames, "weight": weight}, "cpu")
        assert comparison.passed, comparison


@needs_native
@pytest.mark.parametrize("scale", spec.SCALES, ids=str)
def test_threads_do_not_change_a_bit(scale, backend):
    if backend != "cpu":
        pytest.skip("the framework's convolution promises no such thing")
    call = make_upsample_call(UpsampleCase("t", (2, 16, 5, 21, 30), 72, 3, scale), torch.float32, 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(upsample_conv(**call, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@needs_native
def test_packed_weights_are_kept_under_the_budget_and_never_stale():
    x, weight = torch.randn(1, 8, 1, 8, 8), torch.nn.Parameter(torch.randn(8, 8, 1, 3, 3))
    release_packed_weights()
    with torch.no_grad():
        upsample_conv(x, weight, backend="cpu")
        size = cpu.winograd_packing(weight, SPACE, native.cpu_isa()).size
        assert packed_size() == size
        upsample_conv(x, weight, scale=TIME, backend="cpu")
        assert packed_size() > size, "other phases are other packed weights"
        weight.data.copy_(torch.randn_like(weight))
        got, expected = (upsample_conv(x, weight, backend=b) for b in ("cpu", "reference"))
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
        release_packed_weights([weight])
        assert packed_size() == 0


@needs_native
def test_without_room_for_packed_weights():
    """The same bits where weights are transformed on every call; a small call goes direct instead."""
    large = make_upsample_call(UpsampleCase("l", (1, 8, 1, 66, 66), 8, scale=SPACE), torch.float32, 2)
    small = make_upsample_call(UpsampleCase("s", (1, 8, 1, 8, 8), 8, scale=SPACE), torch.float32, 3)
    kept = upsample_conv(**large, backend="cpu")
    with use_packed_budget(0):
        release_packed_weights()
        assert torch.equal(upsample_conv(**large, backend="cpu"), kept)
        assert compare_upsample(small, "cpu").passed
        assert packed_size() == 0


@needs_native
@pytest.mark.parametrize("scale", spec.SCALES, ids=str)
def test_the_stated_error(scale):
    """At most 1.5e-6 relative to float64: docs/design/winograd.md."""
    case = UpsampleCase("error", (1, 128, 3, 12, 12), 64, 3, scale, bias=False)
    call = make_upsample_call(case, torch.float32, 4)
    assert spec.takes_winograd(call["weight"].shape, scale, (12, 12))
    oracle = upsample_conv(call["x"].double(), call["weight"].double(), scale=scale)
    got = upsample_conv(**call, backend="cpu").double()
    assert (got - oracle).norm() / oracle.norm() < 1.5e-6


@needs_native
@pytest.mark.parametrize("scale", [BOTH, TIME], ids=str)
def test_a_single_first_frame_takes_two_products_of_three(scale):
    """Weights that must not enter are NaN: the third product is of the change from frame to frame."""
    module, isa = native.cpu_module(), native.cpu_isa()
    call = make_upsample_call(UpsampleCase("n", (1, 8, 2, 8, 8), 8, 3, scale), torch.float32, 6)
    x, weight = call["x"], call["weight"]
    packed = cpu._pack(weight, scale, cpu.winograd_packing(weight, scale, isa).size, isa)
    packed.unflatten(0, (-1, 3, packed.numel() // (12 if scale == BOTH else 3)))[:, 2] = torch.nan
    for frames, finite in ((1, True), (2, False)):
        out = torch.empty(1, 8, *spec.output_size((1, 8, frames, 8, 8), scale, True))
        tensors = [native.describe(t) for t in (out, x[:, :, :frames], weight[:, :, :2])]
        words = ("first_single", scale[1] == 2, "replicate", "zeros", "float32", isa, 1)
        module.upsample_conv(*tensors, call["bias"].data_ptr(), None, *words, packed.data_ptr())
        assert out.isfinite().all() == finite
        expected = upsample_conv(**call, backend="reference")[:, :, :1]
        assert torch.allclose(out[:, :, :1], expected, rtol=1e-4, atol=1e-4)
