"""`causal_conv3d`: every backend against the fp64 oracle, under the tolerance rule."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels import (
    BackendUnavailable,
    FrameBuffer,
    InvalidInput,
    causal_conv3d,
    use_backend,
)
from causalvae_kernels.core.layout import memory_format_of
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.causal_conv3d import spec
from causalvae_kernels.ops.causal_conv3d.backends import aten
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs
from causalvae_kernels.parity import compare, compare_conv, run_in_chunks
from causalvae_kernels.workloads import CONV_CASES, ConvCase, in_buffer, make_conv_call, with_layout
from tests.support.backends import BACKENDS, DTYPES, NAMES
from tests.support.cover import pairs, quick

CONV = torch.ops.causalvae_kernels.causal_conv3d.default
NOT_TRITON = pytest.mark.skipif(interpreting(), reason="Triton's kernel returns a fresh tensor")
BY_NAME = {case.name: case for case in CONV_CASES}


@pairs(case=CONV_CASES, backend=BACKENDS, dtype=DTYPES)
@pytest.mark.every_instruction_set
def test_backend_against_the_oracle(case, dtype, backend, seed):
    comparison = compare_conv(make_conv_call(case, dtype, seed), backend)
    assert comparison.passed, comparison


@pairs(case=CONV_CASES, dtype=DTYPES[:2])
def test_aten_in_the_exact_tier_gives_the_bits_of_the_reference(case, dtype, seed):
    comparison = compare_conv(make_conv_call(case, dtype, seed), "aten", precision="exact")
    assert comparison.passed, comparison


@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
def test_aten_in_float64(case, seed):
    call = make_conv_call(case, torch.float64, seed)
    got, expected = (causal_conv3d(**call, backend=b) for b in ("aten", "reference"))
    assert compare(got, expected, expected).passed


# (temporal mode, dtype): whether one slice of the weights, or their sum, gives a single first frame's output.
IMAGES = {
    ("zeros", torch.float32): True,
    ("zeros", torch.bfloat16): True,
    ("replicate", torch.float32): True,
    ("replicate", torch.bfloat16): False,  # a rounded sum costs digits where taps cancel
}


@pytest.mark.parametrize(("mode", "low"), IMAGES, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"spatial_mode": "reflect"}, {"stride": 2}, {"dilation": 2}], ids=str
)
def test_an_image_takes_a_kernel_of_one_frame_on_aten(mode, low, options, monkeypatch):
    seen = []
    original = aten._in_pieces
    monkeypatch.setattr(
        aten, "_in_pieces", lambda f, x, w, *a: seen.append((x.shape[2], w.shape[2])) or original(f, x, w, *a)
    )
    x, weight = torch.randn(2, 8, 1, 9, 7).to(low), torch.randn(6, 8, 3, 3, 3).to(low)
    weight[:, :, 0] = -weight[:, :, 2]  # taps that cancel
    call = {"x": x, "weight": weight, "bias": None, "temporal_mode": mode, **options}
    comparison = compare_conv(call, "aten")
    assert comparison.passed, comparison
    assert seen == [(1, 1) if IMAGES[mode, low] else (1 + 2 * options.get("dilation", 1), 3)]
    seen.clear()
    causal_conv3d(**call, backend="aten", precision="exact")
    past = torch.zeros(2, 8, 2 * options.get("dilation", 1), 9, 7).to(low)
    causal_conv3d(**call, initial_state=past, backend="aten")
    assert all(taps == 3 for _, taps in seen) and len(seen) == 2


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_an_image_in_a_buffer_on_aten(mode):
    """A producer needs no head-room, and what lies in front of the body is neither read nor written."""
    x, weight = torch.randn(1, 4, 1, 5, 6), torch.randn(3, 4, 3, 3, 3)
    buffer = in_buffer(x, 2)
    buffer.storage[:, :, :2] = float("nan")
    got, state = causal_conv3d(buffer, weight, temporal_mode=mode, return_final_state=True, backend="aten")
    expected, after = causal_conv3d(x, weight, temporal_mode=mode, return_final_state=True, backend="aten")
    assert torch.equal(got, expected) and torch.equal(state, after)
    assert buffer.storage[:, :, :2].isnan().all()


@pytest.mark.parametrize("dilation", [2, (2, 1, 1)])
def test_the_room_of_a_buffer_is_dilated_time_alone(dilation):
    x, weight = torch.randn(1, 4, 3, 5, 6), torch.randn(3, 4, 3, 1, 1)
    got = causal_conv3d(in_buffer(x, 4), weight, dilation=dilation, backend="reference")
    assert torch.equal(got, causal_conv3d(x, weight, dilation=dilation, backend="reference"))


def test_reference_is_what_a_causal_convolution_is(seed):
    """The definition, element by element, without any padding function."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, 4, 3, 3, dtype=torch.float64, generator=generator)
    weight = torch.randn(1, 2, 3, 3, 3, dtype=torch.float64, generator=generator)
    expected = torch.zeros(1, 1, 4, 3, 3, dtype=torch.float64)
    for t in range(4):
        for h in range(3):
            for w in range(3):
                for dt in range(3):
                    for dh in range(3):
                        for dw in range(3):
                            row, column = h + dh - 1, w + dw - 1
                            if 0 <= row < 3 and 0 <= column < 3:
                                source = x[0, :, max(t + dt - 2, 0), row, column]
                                expected[0, 0, t, h, w] += source @ weight[0, :, dt, dh, dw]
    got = causal_conv3d(x, weight, backend="reference")
    assert torch.allclose(got, expected, rtol=0, atol=1e-12)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_shapes_strides_and_modes(data):
    draw = data.draw
    modes = draw(st.sampled_from(spec.SPATIAL_MODES)), draw(st.sampled_from(spec.TEMPORAL_MODES))
    kernel = draw(st.tuples(st.integers(1, 4), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)))
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    least = [reach[0] + 1 if modes[1] == "valid" else 1]
    least += [{"valid": r + 1, "reflect": r // 2 + 1}.get(modes[0], 1) for r in reach[1:]]
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 20)),
        *(draw(st.integers(low, low + 7)) for low in least),
    )
    options = {"stride": stride, "dilation": dilation, "spatial_mode": modes[0], "temporal_mode": modes[1]}
    out_channels = draw(st.integers(1, 36))
    size = spec.output_size(shape, kernel, stride, dilation, modes[1], modes[0])
    layout = draw(st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]))
    state = draw(st.booleans()) and modes[1] != "valid" and reach[0] > 0
    call = make_conv_call(
        ConvCase("drawn", shape, out_channels, kernel, layout, state, draw(st.booleans()), options=options),
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        draw(st.integers(0, 2**31)),
    )
    if draw(st.booleans()):
        call["residual"] = with_layout(torch.randn(shape[0], out_channels, *size).to(call["x"].dtype), layout)
    for name in NAMES:
        comparison = compare_conv(call, name)
        assert comparison.passed, (name, comparison)


@pairs(
    chunks=[(7,), (1,) * 7, (1, 2, 4), (5, 2)],
    kernel_t=[1, 2, 3, 5],
    mode=["replicate", "zeros"],
    backend=BACKENDS,
)
def test_chunks_equal_the_whole(chunks, mode, kernel_t, backend, seed):
    case = ConvCase("chunks", (2, 6, 7, 5, 6), 9, (kernel_t, 3, 3))
    call = make_conv_call(case, torch.float32, seed)
    x = call.pop("x")
    call["temporal_mode"] = mode

    def conv(chunk, initial_state):
        return causal_conv3d(
            chunk, **call, initial_state=initial_state, return_final_state=True, backend=backend
        )

    whole, last = conv(x, None)
    got, state = run_in_chunks(conv, x, chunks)
    assert torch.equal(state, last)
    oracle = causal_conv3d(x.double(), call["weight"].double(), call["bias"].double(), temporal_mode=mode)
    assert compare(got, whole, oracle, *spec.error_factor(torch.float32)).passed


def test_chunks_of_even_length_with_a_temporal_stride(backend):
    x, weight = torch.randn(1, 4, 8, 5, 5), torch.randn(4, 4, 3, 3, 3)

    def conv(chunk, initial_state):
        return causal_conv3d(
            chunk, weight, stride=2, initial_state=initial_state, return_final_state=True, backend=backend
        )

    got, _ = run_in_chunks(conv, x, (2, 4, 2))
    assert torch.allclose(got, conv(x, None)[0], atol=1e-4)


@pairs(
    spatial_mode=["zeros", "replicate", "reflect"],
    halo=[False, True],
    layout=["contiguous", "channels_last_3d"],
    backend=BACKENDS,
)
def test_frame_buffer_equals_tensor(spatial_mode, halo, layout, backend, seed):
    call = make_conv_call(ConvCase("b", (2, 5, 3, 6, 7), 8, layout=layout, state=True), torch.float32, seed)
    call |= {"spatial_mode": spatial_mode, "return_final_state": True}
    x = call.pop("x")
    expected, expected_state = causal_conv3d(x, **call, backend=backend)
    buffer = in_buffer(x, 2, (1, 1, 1, 1) if halo else (0, 0, 0, 0))
    got, state = causal_conv3d(buffer, **call, backend=backend)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert got.stride() == expected.stride()
    assert torch.equal(state, expected_state)
    assert torch.equal(buffer.body, x)
    state.zero_()
    assert torch.equal(buffer.body, x)


def test_frame_buffer_is_not_copied():
    """The convolution over a buffer allocates its output and the state, and no second input."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func not in (torch.ops.aten.convolution.default, torch.ops.aten.mkldnn_convolution.default):
                fresh = isinstance(out, torch.Tensor) and out._base is None
                written = func in (torch.ops.aten.copy_.default, torch.ops.aten.cat.default)
                if fresh or written:
                    self.elements = max(self.elements, out.numel())
            return out

    x = torch.randn(1, 8, 9, 16, 16)
    weight, buffer = torch.randn(8, 8, 3, 3, 3), in_buffer(x, 2)
    causal_conv3d(buffer, weight, return_final_state=True)
    counted = Largest()
    with counted, torch.no_grad():
        torch.ops.aten.clone(x)
    assert counted.elements == x.numel()
    counted.elements = 0
    with counted, torch.no_grad():
        # Below the operator, where the backend works.
        aten.CONV.make(ConvArgs(buffer.storage, weight, temporal_mode="valid"), "high")
    assert counted.elements < x.numel() // 2


@pytest.mark.skipif(not aten._ONEDNN, reason="F.conv3d is all that there is")
@pytest.mark.parametrize(
    ("channels", "size", "by_onednn"),
    [
        (208, (3, 1, 1), False),
        (208, (3, 2, 3), True),
        (208, (3, 3, 5), False),
        (208, (3, 8, 9), True),
        (144, (3, 3, 5), True),
        (568, (3, 2, 3), False),
        (568, (3, 9, 19), False),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_aten_leaves_large_weights_of_few_pixels_as_they_lie(channels, size, by_onednn, memory_format):
    """The copy that oneDNN makes of weights costs more than it gains: 110 ms of 142, for 1024 channels."""
    x = torch.randn(1, channels, *size).contiguous(memory_format=memory_format)
    weight, called = torch.randn(channels, channels, 3, 3, 3) / channels, []

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    with Calls(), torch.no_grad():
        aten.CONV.make(ConvArgs(x, weight, temporal_mode="valid"), "high")
    assert (torch.ops.aten.mkldnn_convolution.default in called) == by_onednn
    call = {"x": x, "weight": weight, "temporal_mode": "valid"}
    assert causal_conv3d(**call, backend="aten").is_contiguous(memory_format=memory_format)
    comparison = compare_conv(call, "aten")
    assert comparison.passed, comparison


def test_large_inputs_are_cut_along_time(monkeypatch, seed):
    from causalvae_kernels.ops.causal_conv3d.backends import aten

    call = make_conv_call(ConvCase("cut", (1, 4, 9, 6, 6), 5, residual=True), torch.float32, seed)
    whole = causal_conv3d(**call, backend="aten", precision="exact")
    strided = causal_conv3d(**(call | {"residual": None}), stride=2, backend="aten")
    monkeypatch.setattr(aten, "_MAX_ELEMENTS", 300)
    assert torch.allclose(causal_conv3d(**call, backend="aten", precision="exact"), whole, atol=1e-5)
    cut = causal_conv3d(**(call | {"residual": None}), stride=2, backend="aten")
    assert torch.allclose(cut, strided, atol=1e-5)


def test_memory_format_follows_the_inputs(backend):
    x, weight = torch.randn(1, 4, 3, 5, 6), torch.randn(5, 4, 3, 3, 3)
    last = {"memory_format": torch.channels_last_3d}
    assert causal_conv3d(x, weight, backend=backend).is_contiguous()
    assert causal_conv3d(x.contiguous(**last), weight, backend=backend).is_contiguous(**last)
    assert causal_conv3d(x, weight.contiguous(**last), backend=backend).is_contiguous(**last)
    body = in_buffer(x.contiguous(**last), 2).body
    assert causal_conv3d(body, weight, backend=backend).is_contiguous(**last)


OPCHECK_CASES = (
    "plain",
    "channels last, state, residual",
    "permuted strides, state",
    "no bias",
    "stride 2 everywhere",
    "dilation",
    "reflect in space, channels last",
    "valid in time",
)


@pytest.mark.one_backend
@pytest.mark.parametrize("name", quick(OPCHECK_CASES, OPCHECK_CASES[1:2]))
def test_opcheck(name, backend, seed):
    case = BY_NAME[name]
    call = make_conv_call(case, torch.float32, seed)
    tensors = [call.get(n) for n in ("x", "weight", "bias", "initial_state", "residual")]
    tensors = [None if t is None else t.requires_grad_() for t in tensors]
    strides = [
        (v,) * 3 if isinstance(v, int) else v
        for v in (case.options.get(n, 1) for n in ("stride", "dilation"))
    ]
    modes = case.options.get("temporal_mode", "replicate"), case.options.get("spatial_mode", "zeros")
    torch.library.opcheck(CONV, (*tensors, *strides, *modes, backend, ""))


@pytest.mark.parametrize("exact_backend", ["aten", "reference"])
@pytest.mark.parametrize("state", quick([None, "contiguous", "channels_last_3d"], ["channels_last_3d"]))
def test_opcheck_in_the_exact_tier(exact_backend, state, seed):
    """There the output keeps the layout that the framework gives it, and the fake kernel must know which."""
    last = ConvCase("exact", (2, 5, 1, 5, 4), 3, layout="channels_last_3d")
    call = make_conv_call(last, torch.float32, seed)
    past = None if state is None else with_layout(torch.randn(2, 5, 2, 5, 4), state)
    arguments = (call["x"], call["weight"], None, past, None, (1,) * 3, (1,) * 3, "replicate", "zeros")
    torch.library.opcheck(CONV, (*arguments, exact_backend, "exact"))

    def step(x):
        y = causal_conv3d(x, call["weight"], initial_state=past, precision="exact", backend=exact_backend)
        return y.relu() * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(call["x"])
    assert torch.equal(compiled, step(call["x"])) and compiled.stride() == step(call["x"]).stride()


def test_a_tensor_whose_sign_is_a_flag(backend):
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    weight = torch.randn(2, 2, 3, 3, 3)
    got = causal_conv3d(x, weight, backend=backend)
    assert torch.allclose(got, causal_conv3d(x.clone(), weight, backend="reference"), atol=1e-4)


@pytest.mark.one_backend
def test_a_trace_sees_the_operator(backend):
    weight = torch.randn(2, 2, 3, 3, 3)
    x, other = torch.randn(2, 1, 2, 3, 4, 5)
    traced = torch.jit.trace(lambda x: causal_conv3d(x, weight, backend=backend), (x,), check_trace=False)
    assert torch.allclose(traced(other), causal_conv3d(other, weight, backend=backend), atol=1e-5)


def test_a_default_device_does_not_move_the_output(backend):
    x, weight = torch.randn(1, 2, 3, 4, 5), torch.randn(2, 2, 3, 3, 3)
    with torch.device("meta"):
        got = causal_conv3d(x, weight, backend=backend)
    assert got.device.type == "cpu" and got.isfinite().all()


def test_a_buffer_written_twice_before_backward_is_noticed(backend):
    weight = torch.randn(2, 2, 3, 3, 3, requires_grad=True)
    buffer = in_buffer(torch.randn(1, 2, 3, 4, 5), 2)
    states = torch.randn(2, 1, 2, 2, 4, 5)
    total = sum(causal_conv3d(buffer, weight, initial_state=s, backend=backend) for s in states)
    if backend == "aten":
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.sum().backward()
        return
    total.sum().backward()  # reads the state where it lies: nothing was written twice
    again = weight.detach().requires_grad_()
    sum(causal_conv3d(buffer.body.clone(), again, initial_state=s) for s in states).sum().backward()
    assert torch.allclose(weight.grad, again.grad, rtol=1e-4, atol=1e-4)


def test_inference_tensors(backend):
    weight = torch.randn(2, 2, 3, 3, 3)
    with torch.inference_mode():
        buffer = in_buffer(torch.randn(1, 2, 3, 4, 5), 2)
        got = causal_conv3d(buffer, weight, backend=backend)
        expected = causal_conv3d(buffer.body.clone(), weight, backend="reference")
    assert torch.allclose(got, expected, atol=1e-4)


def test_a_buffer_under_autocast(backend):
    weight, past = torch.randn(2, 2, 3, 3, 3), torch.randn(1, 2, 2, 4, 5).bfloat16()
    x = torch.randn(1, 2, 3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = causal_conv3d(in_buffer(x, 2), weight, initial_state=past, backend=backend)
        expected = causal_conv3d(x, weight, initial_state=past, backend=backend)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(got, expected, atol=0.05)


@pairs(
    rooms=[(1, 1), (0, 2), (2, 0)],
    backend=BACKENDS,
    mode=["zeros", "replicate", "reflect"],
    frames=[1, 2, 4],
    dtype=DTYPES,
    layout=["contiguous", "channels_last_3d"],
)
def test_a_buffer_with_room_behind(frames, rooms, mode, layout, dtype, backend, seed):
    """The last frame stands behind itself, padded in space like the others; with a halo and without one."""
    head, tail = rooms
    call = make_conv_call(ConvCase("b", (2, 5, frames, 6, 7), 8, layout=layout), dtype, seed)
    x, weight, bias = call["x"], call["weight"], call["bias"]
    wide = torch.cat([*[x[:, :, :1]] * head, x, *[x[:, :, -1:]] * tail], dim=2)
    options = {"temporal_mode": "valid", "spatial_mode": mode, "backend": backend}
    expected = causal_conv3d(wide.contiguous(memory_format=memory_format_of(x)), weight, bias, **options)
    for halo in ((0, 0, 0, 0), (1, 1, 1, 1)):
        buffer = FrameBuffer.empty(
            x.shape,
            head_room=head,
            halo=halo,
            tail_room=tail,
            dtype=dtype,
            memory_format=memory_format_of(x),
        )
        buffer.storage.fill_(float("nan"))
        buffer.body.copy_(x)
        got = causal_conv3d(buffer, weight, bias, spatial_mode=mode, backend=backend)
        close = {torch.float32: 1e-4}.get(dtype, 0.05)
        assert torch.allclose(got, expected, rtol=close, atol=close)
        assert torch.equal(buffer.body, x)
        if tail:
            with pytest.raises(InvalidInput, match="tail_room"):
                causal_conv3d(buffer, weight, bias, return_final_state=True, backend=backend)


GRADIENTS = {
    "replicate": {},
    "zeros": {"temporal_mode": "zeros"},
    "state": {"state": True},
    "stride": {"stride": 2},
    "dilation": {"dilation": (2, 1, 2), "state": True},
    "reflect": {"spatial_mode": "reflect"},
    "replicate in space": {"spatial_mode": "replicate", "state": True},
    "valid": {"spatial_mode": "valid", "temporal_mode": "valid"},
}


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_everything(options):
    options = dict(options)
    with_state = options.pop("state", False)
    frames = 2 * (options.get("dilation", (1, 1, 1))[0])
    x, weight, bias, state = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((1, 2, 3, 4, 3), (2, 2, 3, 3, 3), (2,), (1, 2, frames, 4, 3))
    )
    state = state if with_state else None
    shape = causal_conv3d(x, weight, initial_state=state, **options).shape
    residual = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def conv(x, weight, bias, residual, *state):
        return causal_conv3d(
            x,
            weight,
            bias,
            residual=residual,
            initial_state=state[0] if state else None,
            return_final_state=options.get("temporal_mode") != "valid",
            **options,
        )

    arguments = (x, weight, bias, residual, *([state] if with_state else []))
    assert torch.autograd.gradcheck(conv, arguments)
    assert torch.autograd.gradgradcheck(conv, arguments, fast_mode=True)


def test_gradients_are_those_of_the_framework_whatever_the_backend(backend, seed):
    call = make_conv_call(ConvCase("g", (2, 5, 3, 6, 7), 4, residual=True), torch.float32, seed)
    leaves = {k: v.clone().requires_grad_() for k, v in call.items()}
    causal_conv3d(**leaves, backend=backend).square().sum().backward()
    plain = {k: v.clone().requires_grad_() for k, v in call.items()}
    padded = torch.cat([plain["x"][:, :, :1]] * 2 + [plain["x"]], dim=2)
    (
        F.conv3d(padded, plain["weight"], plain["bias"], padding=(0, 1, 1)) + plain["residual"]
    ).square().sum().backward()
    for name, leaf in leaves.items():
        assert torch.allclose(leaf.grad, plain[name].grad, rtol=1e-3, atol=1e-3), name


def test_only_the_wanted_gradients_are_computed(backend):
    x = torch.randn(1, 3, 2, 4, 4)
    weight = torch.randn(3, 3, 3, 3, 3, requires_grad=True)
    bias = torch.randn(3)
    causal_conv3d(x, weight, bias, backend=backend).sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None


@pytest.mark.one_backend
@pytest.mark.parametrize("channels_last", quick([False, True], [True]))
def test_compiles_without_a_graph_break(channels_last, backend):
    x, weight = torch.randn(1, 4, 3, 5, 6), torch.randn(6, 4, 3, 3, 3)
    bias, residual = torch.randn(6), torch.randn(1, 6, 3, 5, 6)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)

    def step(x):
        y, state = causal_conv3d(
            x * 2, weight, bias, residual=residual, return_final_state=True, backend=backend
        )
        return causal_conv3d(y, weight.transpose(0, 1), backend=backend), state

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, expected in zip(compiled(x), step(x), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
        assert got.stride() == expected.stride()
    longer = torch.cat([x, x], dim=2)
    residual = torch.randn(1, 6, 6, 5, 6)
    assert torch.allclose(compiled(longer)[0], step(longer)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
def test_compiled_backward(backend):
    weight = torch.randn(4, 4, 3, 3, 3)

    def loss(x):
        return causal_conv3d(x, weight, backend=backend).square().sum()

    x, y = (torch.ones(1, 4, 2, 5, 5).requires_grad_() for _ in range(2))
    loss(x).backward()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(y).backward()
    assert torch.allclose(x.grad, y.grad, rtol=1e-4)


@pytest.mark.one_backend
@pytest.mark.exhaustive
@pytest.mark.skipif(
    " " in torch.__file__, reason="torch's inductor does not quote the path it is installed in"
)
def test_compiles_with_inductor(backend):
    x, weight = torch.randn(1, 4, 3, 5, 6), torch.randn(6, 4, 3, 3, 3)

    def step(x):
        return causal_conv3d(F.silu(x), weight, backend=backend).relu()

    assert torch.allclose(torch.compile(step, fullgraph=True)(x), step(x), rtol=1e-4, atol=1e-4)


@pytest.mark.one_backend
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_frameworks_dtypes(low, backend):
    x, weight, bias = torch.randn(1, 4, 3, 5, 6), torch.randn(4, 4, 3, 3, 3), torch.randn(4)
    past = torch.randn(1, 4, 2, 5, 6)
    with torch.autocast("cpu", dtype=low):
        padded = torch.cat([past, x], dim=2)
        plain = F.conv3d(padded, weight, bias, padding=(0, 1, 1))
        summed = plain + x
        got, state = causal_conv3d(
            x, weight, bias, initial_state=past, return_final_state=True, backend=backend
        )
        with_residual = causal_conv3d(x, weight, bias, initial_state=past, residual=x, backend=backend)
        own = causal_conv3d(x, weight, bias, initial_state=past, residual=plain, backend=backend)
    assert got.dtype == plain.dtype == low
    assert state.dtype == x.dtype and torch.equal(state, x[:, :, -2:])
    assert with_residual.dtype == summed.dtype == torch.float32
    assert own.dtype == (plain + plain).dtype
    assert torch.allclose(got, plain, rtol=2e-2, atol=2e-2)
    assert torch.allclose(with_residual, summed, rtol=2e-2, atol=2e-2)


@pytest.mark.one_backend
def test_two_python_threads_at_once(backend, seed):
    """No static scratch: two threads with different work get the results of one."""
    calls = [make_conv_call(c, torch.float32, seed + i) for i, c in enumerate(CONV_CASES[8:12])]
    expected = [causal_conv3d(**c, backend=backend) for c in calls]
    wrong: list[int] = []

    def work(indices):
        for _ in range(1 if interpreting() else 10):
            for i in indices:
                if not torch.equal(causal_conv3d(**calls[i], backend=backend), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(order,)) for order in ([0, 1, 2, 3], [3, 2, 1, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_thread_count_does_not_change_native_bits(backend, seed):
    if backend != "cpu":
        pytest.skip("the framework's convolution promises no such thing")
    call = make_conv_call(BY_NAME["no tile divides, batch"], torch.float32, seed)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = causal_conv3d(**call, backend=backend)
        for threads in (2, 64):
            torch.set_num_threads(threads)
            assert torch.equal(causal_conv3d(**call, backend=backend), one)
    finally:
        torch.set_num_threads(before)


def test_weights_are_never_stale(backend):
    """`data.copy_`, EMA and casting leave identity and version counter of a parameter unchanged."""
    x, weight = torch.randn(1, 8, 3, 6, 6), torch.nn.Parameter(torch.randn(8, 8, 3, 3, 3))
    with torch.no_grad():
        causal_conv3d(x, weight, backend=backend)
        for change in (
            lambda: weight.data.copy_(torch.randn_like(weight)),
            lambda: weight.data.mul_(0.5).add_(torch.randn_like(weight), alpha=0.5),
            lambda: weight.data.zero_(),
            lambda: setattr(weight, "data", torch.randn_like(weight)),
        ):
            change()
            got = causal_conv3d(x, weight, backend=backend)
            expected = causal_conv3d(x, weight.detach().clone(), backend="reference")
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 4, 5, 5)}, "five dimensions"),
        ({"x": torch.zeros(1, 4, 3, 5, 5, dtype=torch.int32)}, "expected float32"),
        ({"x": torch.zeros(1, 3, 3, 5, 5)}, "3 channels and weight"),
        ({"weight": torch.zeros(2, 4, 3, 2, 3)}, "odd height and width"),
        ({"weight": torch.zeros(2, 4, 3, 3, 3, dtype=torch.float64)}, r"one dtype; convert"),
        ({"bias": torch.zeros(3)}, r"expected \(2,\)"),
        ({"stride": 3}, "strides of 1 or 2"),
        ({"stride": (1, 2)}, "an int or 3 ints"),
        ({"dilation": 0}, "dilations >= 1"),
        ({"temporal_mode": "constant"}, "expected one of"),
        ({"spatial_mode": "circular"}, "expected one of"),
        ({"spatial_mode": "valid", "x": torch.zeros(1, 4, 3, 2, 2)}, "smaller than the kernel"),
        ({"temporal_mode": "valid", "x": torch.zeros(1, 4, 2, 5, 5)}, "smaller than the kernel"),
        ({"initial_state": torch.zeros(1, 4, 1, 5, 5)}, r"expected \(1, 4, 2, 5, 5\)"),
        ({"initial_state": torch.zeros(1, 4, 2, 5, 5), "temporal_mode": "valid"}, "got an initial_state"),
        ({"residual": torch.zeros(1, 2, 3, 5, 4)}, r"expected \(1, 2, 3, 5, 5\)"),
        ({"precision": "double"}, "expected one of 'exact', 'high'"),
        ({"backend": "gpu"}, "expected one of"),
        ({"x": FrameBuffer(torch.zeros(1, 4, 4, 5, 5), 1)}, "head_room 1 and tail_room 0, expected"),
        ({"x": FrameBuffer(torch.zeros(1, 4, 4, 5, 5), 2, (1, 1, 1, 1)), "spatial_mode": "valid"}, "halo"),
    ],
)
def test_bad_input_gets_a_sentence(change, words):
    call = {"x": torch.zeros(1, 4, 3, 5, 5), "weight": torch.zeros(2, 4, 3, 3, 3)} | change
    with pytest.raises(InvalidInput, match=words):
        causal_conv3d(**call)


@pytest.mark.skipif(not any(name == "cpu" for name, _ in BACKENDS), reason="the native module is not built")
def test_forced_backend_that_cannot_run_says_why():
    x, weight = (
        torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64),
        torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64),
    )
    with pytest.raises(BackendUnavailable, match=r"'cpu' cannot run this call: .*float64.*aten can run"):
        causal_conv3d(x, weight, backend="cpu")
    with use_backend("cpu"), pytest.raises(BackendUnavailable, match=r"decided by use_backend\(\)"):
        causal_conv3d(x, weight)
    with pytest.raises(BackendUnavailable, match="'exact' asks for the bits"):
        causal_conv3d(x.float(), weight.float(), backend="cpu", precision="exact")


def test_flops_and_bytes():
    # 2 * Cout * Cin * 27 * T * H * W, and each element once.
    assert spec.flops((1, 4, 5, 6, 7), (8, 4, 3, 3, 3)) == 2 * 8 * 4 * 27 * 5 * 6 * 7
    assert spec.flops((2, 4, 5, 6, 8), (8, 4, 3, 3, 3), stride=(1, 2, 2)) == 2 * 2 * 8 * 4 * 27 * 5 * 3 * 4
    assert spec.bytes_moved((1, 4, 5, 6, 7), (8, 4, 3, 3, 3), 2) == 2 * (12 * 210 + 8 * 4 * 27)


@pytest.mark.parametrize("stacked", [2**28, 1], ids=["at once", "frame by frame"])
@pytest.mark.parametrize("case", CONV_CASES[::2], ids=lambda c: c.name)
def test_frame_by_frame_is_the_convolution(case, stacked, seed, monkeypatch):
    """What `aten` does on a GPU where the framework's 3D convolution is broken."""
    monkeypatch.setattr(aten, "_MAX_STACKED", stacked)
    monkeypatch.setattr(aten, "_convolution", aten.frame_by_frame)
    comparison = compare_conv(make_conv_call(case, torch.float32, seed), "aten")
    assert comparison.passed, comparison


def test_broken_versions_are_stepped_around_with_a_sentence(monkeypatch):
    monkeypatch.setattr(aten, "why_conv3d_is_broken", lambda dtype: "cuDNN 9.9: wrong")
    aten._on_gpu.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="frame by frame instead: cuDNN 9.9: wrong"):
            assert aten._on_gpu(torch.bfloat16) is aten.frame_by_frame
        monkeypatch.setattr(aten, "why_conv3d_is_broken", lambda dtype: None)
        assert aten._on_gpu(torch.float16) is F.conv3d
    finally:
        aten._on_gpu.cache_clear()


@pytest.mark.parametrize("backend", ["aten", "reference"])
@pytest.mark.parametrize(
    ("spatial_mode", "width"), [("zeros", 1), ("zeros", 2), ("valid", 4), ("reflect", 2)]
)
def test_one_strided_column_is_not_what_onednn_gets_wrong(spatial_mode, width, backend, strides):
    """See `conv3d`: only a processor with AMX shows wrong numbers, any shows what the framework is asked."""
    x, weight = torch.randn(1, 4, 3, 7, width).bfloat16(), torch.randn(5, 4, 3, 3, 3).bfloat16()
    options = {"stride": (1, 2, 2), "spatial_mode": spatial_mode}
    got = causal_conv3d(x, weight, backend=backend, **options)
    assert got.shape[4] == 1 and set(strides) == {1}
    expected = causal_conv3d(x.double(), weight.double(), backend="reference", **options)
    assert 2 in strides, "float64 goes as it is"
    assert (got - expected).abs().max() <= 2**-6 * expected.abs().max()


@NOT_TRITON
@pytest.mark.parametrize("case", CONV_CASES, ids=lambda c: c.name)
def test_into_memory_that_is_there(case, backend, seed):
    """The bits of the call that allocates; nothing around the output is touched."""
    call = make_conv_call(case, torch.float32, seed)
    expected = causal_conv3d(**call, backend=backend)
    batch, channels, *size = expected.shape
    wide = torch.full((batch, *(n + 2 for n in size), channels + 1), 7.0).permute(0, 4, 1, 2, 3)
    out = wide[:, 1:, 1:-1, 1:-1, 1:-1]
    assert causal_conv3d(**call, out=out, backend=backend) is out
    assert torch.equal(out, expected)
    out.fill_(7.0)
    assert torch.equal(wide, torch.full_like(wide, 7.0))


@NOT_TRITON
def test_into_a_frame_buffer_with_the_final_state(backend, seed):
    call = make_conv_call(CONV_CASES[0], torch.float32, seed)
    expected, state = causal_conv3d(**call, return_final_state=True, backend=backend)
    buffer = FrameBuffer.empty(expected.shape, head_room=2)
    got, last = causal_conv3d(**call, return_final_state=True, out=buffer, backend=backend)
    assert got is buffer and torch.equal(buffer.body, expected) and torch.equal(last, state)


def test_into_refuses_what_would_be_lost(seed):
    call = make_conv_call(CONV_CASES[0], torch.float32, seed)
    out = torch.empty_like(causal_conv3d(**call))
    with pytest.raises(InvalidInput, match="out has shape"):
        causal_conv3d(**call, out=out[:, :, 1:])
    with pytest.raises(InvalidInput, match="requires a gradient"):
        causal_conv3d(**{**call, "weight": call["weight"].requires_grad_()}, out=out)
    call["weight"].requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidInput, match="expected no autocast"):
        causal_conv3d(**call, out=out)
