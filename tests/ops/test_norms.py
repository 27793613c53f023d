"""`group_norm`, `spatial_norm`, `rms_norm`, fresh and into memory that is there: what they share."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import BackendUnavailable, FrameBuffer, InvalidInput, explain, group_norm, spatial_norm
from causalvae_kernels.bench.memory import peak_allocated
from causalvae_kernels.core.layout import is_channels_last_3d
from causalvae_kernels.core.op import op_named
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.spatial_norm.spec import why_not_repeated
from causalvae_kernels.parity import compare_norm
from causalvae_kernels.parity.norms import NORMS
from causalvae_kernels.workloads import NORM_CASES, NormCase, in_buffer, make_norm_call
from tests.support.backends import BACKENDS, DTYPES, NAMES
from tests.support.cover import pairs, quick

OPS = torch.ops.causalvae_kernels
LAYOUTS = ("contiguous", "channels_last_3d", "sliced", "permuted")
SMALL = NormCase("small", (2, 6, 3, 4, 6), 3, (2, 2, 3))


@pytest.fixture(params=sorted(NORMS))
def op(request):
    """The name of an op."""
    return request.param


@pytest.fixture
def fresh_compiler():
    """torch counts the compilations of a function's code, whatever it was called with."""
    torch._dynamo.reset()


def operator_arguments(op, call):
    """The arguments of the operator but for backend and precision."""
    names = {
        "group_norm": ("x", "weight", "bias", "num_groups"),
        "spatial_norm": ("x", "scale", "shift", "weight", "bias", "num_groups"),
        "rms_norm": ("x", "weight", "bias"),
    }[op]
    eps = call.get("eps", 0.0 if op == "rms_norm" else 1e-5)
    return (*(call.get(name) for name in names), eps, call["activation"] == "silu")


@pairs(case=NORM_CASES, backend=BACKENDS, dtype=DTYPES, in_place=[False, True])
@pytest.mark.every_instruction_set
def test_backend_against_the_oracle(case, op, dtype, in_place, backend, seed):
    call = make_norm_call(op, case, dtype, seed)
    if backend != "aten" and why_not(op, call, backend):
        assert case.name in ("no repeats divide", "three times") and op == "spatial_norm"
        return
    comparison = compare_norm(op, call, backend, in_place=in_place)
    assert comparison.passed, comparison


def why_not(op, call, backend):
    try:
        NORMS[op](**call, backend=backend)
    except BackendUnavailable as error:
        return str(error)
    return None


@pairs(case=NORM_CASES, dtype=DTYPES, in_place=[False, True])
def test_aten_in_the_exact_tier_gives_the_bits_of_the_reference(case, op, in_place, dtype, seed):
    call = make_norm_call(op, case, dtype, seed)
    comparison = compare_norm(op, call, "aten", in_place=in_place, precision="exact")
    assert comparison.passed, comparison


@pytest.mark.parametrize("case", NORM_CASES, ids=lambda c: c.name)
def test_aten_in_float64(case, op, seed):
    call = make_norm_call(op, case, torch.float64, seed)
    got, expected = (NORMS[op](**call, backend=b) for b in ("aten", "reference"))
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_exact_is_refused_by_what_sums_in_another_order(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    if backend == "aten":
        NORMS[op](**call, backend=backend, precision="exact")
        return
    with pytest.raises(BackendUnavailable, match="precision 'exact'"):
        NORMS[op](**call, backend=backend, precision="exact")


@given(data=st.data())
@settings(max_examples=15 if interpreting() else 80, deadline=None)
def test_random_shapes_strides_and_dtypes(data):
    draw = data.draw
    groups, per_group = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    small = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)))
    powers = st.sampled_from([1, 2, 4])
    frames = small[0] * draw(powers)
    if small[0] > 1 and draw(st.booleans()):
        frames = 1 + (small[0] - 1) * draw(st.sampled_from([2, 4]))
    elif frames % 2 and frames > 1:
        frames = small[0]
    case = NormCase(
        "drawn",
        (
            draw(st.integers(1, 3)),
            groups * per_group,
            frames,
            small[1] * draw(powers),
            small[2] * draw(powers),
        ),
        groups,
        small,
        draw(st.sampled_from(LAYOUTS)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 0.0, 3.0])),
        draw(st.sampled_from([1.0, 1.0, 0.1])),
    )
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    op = draw(st.sampled_from(sorted(NORMS)))
    call = make_norm_call(op, case, dtype, draw(st.integers(0, 2**31)))
    for name in NAMES:
        for in_place in (False, True):
            comparison = compare_norm(op, call, name, in_place=in_place)
            assert comparison.passed, (name, comparison)


@pairs(layout=LAYOUTS, into=[torch.contiguous_format, torch.channels_last_3d], backend=BACKENDS)
def test_any_layout_into_any_other(op, layout, into, backend, seed):
    case = NormCase("cross", (2, 20, 3, 6, 7), 4, (2, 3, 7), layout)
    call = make_norm_call(op, case, torch.float32, seed)
    expected = NORMS[op](**call, backend="reference")
    buffer = FrameBuffer.empty(case.shape, head_room=2, halo=(1, 0, 1, 2), memory_format=into)
    NORMS[op](**call, out=buffer, backend=backend)
    assert torch.allclose(buffer.body, expected, rtol=1e-4, atol=1e-5)
    if backend != "aten" and op != "rms_norm":  # the statistics are those of x, wherever the result goes
        assert torch.equal(buffer.body, NORMS[op](**call, backend=backend))


@pairs(layout=["contiguous", "channels_last_3d"], dtype=DTYPES, backend=BACKENDS)
def test_x_may_be_the_body_itself(op, layout, dtype, backend, seed):
    case = NormCase("itself", (2, 37, 3, 6, 7), 1, (2, 3, 7), layout)
    call = make_norm_call(op, case, dtype, seed)
    expected = NORMS[op](**call, backend=backend)
    buffer = in_buffer(call.pop("x"), 2, (1, 1, 1, 1))
    NORMS[op](buffer.body, **call, out=buffer, backend=backend)
    if backend == "aten":  # the bits of the framework's SiLU depend on the layout
        assert torch.allclose(buffer.body.float(), expected.float(), rtol=1e-2, atol=1e-5)
    else:
        assert torch.equal(buffer.body, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "permuted"])
def test_the_same_bits_from_one_and_two_threads(op, layout, backend, seed):
    case = NormCase("threads", (1, 40, 5, 32, 24), 4, (3, 16, 12), layout)
    call = make_norm_call(op, case, torch.float32, seed)
    before = torch.get_num_threads()
    if backend == "aten":
        pytest.skip("the framework's own sums")
    try:
        results = []
        for threads in (1, 2, 3, 64):
            torch.set_num_threads(threads)
            results.append(NORMS[op](**call, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_one_pixel_has_no_layout(op, backend, seed):
    """One pixel may be contiguous with channels-last strides, and torch's group norm goes by these."""
    case = NormCase("one pixel", (8, 8, 1, 1, 1), 4, mean=1.0, deviation=2.0)
    call = make_norm_call(op, case, torch.float32, seed)
    x = call["x"].contiguous()
    expected = NORMS[op](**call, backend=backend)
    call["x"] = torch.empty_strided(x.shape, (8, 1, 8, 8, 8)).copy_(x)
    assert call["x"].is_contiguous() and call["x"].stride() != x.stride()
    assert torch.equal(NORMS[op](**call, backend=backend), expected)


def test_memory_format_follows_the_input(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    norm = NORMS[op]
    x = call.pop("x")
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert norm(x, **call, backend=backend).is_contiguous()
    assert norm(last, **call, backend=backend).is_contiguous(memory_format=torch.channels_last_3d)
    body = in_buffer(last, 2, (1, 1, 1, 1)).body
    assert is_channels_last_3d(body)
    assert norm(body, **call, backend=backend).is_contiguous(memory_format=torch.channels_last_3d)


def test_a_constant_frame_is_no_division_by_zero(op, dtype, backend):
    call = make_norm_call(op, SMALL, dtype, 0)
    for value in (0.0, 5.0):
        call["x"] = torch.full_like(call["x"], value)
        got = NORMS[op](**call, backend=backend)
        expected = NORMS[op](**call, backend="reference")
        assert got.isfinite().all()
        assert torch.allclose(got.float(), expected.float(), rtol=1e-2, atol=1e-2)


def test_what_is_not_finite_stays_so(op, backend):
    """A NaN spoils its group, or its pixel, and nothing else."""
    call = make_norm_call(op, SMALL, torch.float32, 0)
    call["x"][1, 2, 1, 1, 1] = float("nan")
    got = NORMS[op](**call, backend=backend).isnan()
    assert torch.equal(got, NORMS[op](**call, backend="reference").isnan())
    assert got.any() and not got.all()


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_float32_parameters_beside_half_precision(op, low, backend, seed):
    call = make_norm_call(op, SMALL, low, seed)
    for name in ("weight", "bias"):
        call[name] = call[name].float()
    expected = NORMS[op](**call, backend="reference")
    assert expected.dtype == (torch.float32 if op == "rms_norm" else low)
    if backend != "aten" and why_not(op, call, backend):
        assert op == "rms_norm"
        return
    comparison = compare_norm(op, call, backend)
    assert comparison.passed, comparison
    assert NORMS[op](**call, backend=backend).dtype == expected.dtype


@pytest.mark.one_backend
@pairs(low=[torch.bfloat16, torch.float16], given=DTYPES, backend=BACKENDS)
def test_autocast_gives_the_frameworks_dtypes(op, low, given, backend):
    call = make_norm_call(op, SMALL, given, 0)
    plain = {"weight": call["weight"].float(), "bias": call["bias"].float()}
    with torch.autocast("cpu", dtype=low):
        x = call["x"]
        expected = torch.nn.functional.group_norm(x, 3, **plain).dtype
        if op == "rms_norm":
            expected = (torch.nn.functional.normalize(x, dim=1) * plain["weight"].view(-1, 1, 1, 1)).dtype
        if backend != "aten" and why_not(op, call | plain, backend):
            assert op == "rms_norm" and given != torch.float32
            return
        got = NORMS[op](**(call | plain), backend=backend)
    assert got.dtype == expected


@pytest.mark.exhaustive  # tests/ops/test_declaration.py checks one layout of every op
@pytest.mark.one_backend
@pytest.mark.parametrize("layout", ["channels_last_3d", "sliced"])
def test_opcheck(op, layout, backend):
    case = NormCase("opcheck", (2, 4, 3, 4, 2), 2, (2, 2, 1), layout)
    call = make_norm_call(op, case, torch.float32, 0)
    leaves = {k: v.requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    torch.library.opcheck(getattr(OPS, op).default, (*operator_arguments(op, leaves), backend, ""))
    plain = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    out = torch.zeros(case.shape)
    torch.library.opcheck(getattr(OPS, op).out, (out, *operator_arguments(op, plain), backend, ""))


@pairs(silu=[True, False], affine=[True, False], eps=[None, 0.5])
def test_gradients_of_everything(op, silu, affine, eps, seed):
    case = NormCase("gradients", (2, 4, 3, 2, 2), 2, (2, 1, 2), affine=affine, silu=silu, eps=eps)
    call = make_norm_call(op, case, torch.float64, seed)
    names = [name for name, v in call.items() if isinstance(v, torch.Tensor)]

    def norm(*tensors):
        return NORMS[op](**(call | dict(zip(names, tensors, strict=True))))

    leaves = tuple(call[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(norm, leaves)
    assert torch.autograd.gradgradcheck(norm, leaves, fast_mode=True)


def test_gradients_are_those_of_the_reference_whatever_the_backend(op, dtype, backend, seed):
    call = make_norm_call(op, SMALL, dtype, seed)
    names = [name for name, v in call.items() if isinstance(v, torch.Tensor)]
    leaves = {name: call[name].clone().requires_grad_() for name in names}
    NORMS[op](**(call | leaves), backend=backend).square().sum().backward()
    # The reference as plain PyTorch, differentiated by the framework, in float64.
    reference = op_named(op)
    plain = {name: call[name].double().requires_grad_() for name in names}
    y = reference.reference(reference.args(*operator_arguments(op, call | plain)))
    y.square().sum().backward()
    close = 1e-3 if dtype == torch.float32 else 0.05
    for name in names:
        expected = plain[name].grad
        assert leaves[name].grad.dtype == dtype
        distance = (leaves[name].grad - expected).norm() / expected.norm()
        assert distance < close, (name, distance)


def test_only_the_wanted_gradients_are_computed(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    call["weight"].requires_grad_()
    NORMS[op](**call, backend=backend).sum().backward()
    assert call["weight"].grad is not None and call["x"].grad is None and call["bias"].grad is None


@pytest.mark.one_backend
@pytest.mark.parametrize("op", quick(sorted(NORMS), ["spatial_norm"]))  # the next test compiles each
@pytest.mark.parametrize("layout", quick(["contiguous", "channels_last_3d"], ["channels_last_3d"]))
def test_compiles_without_a_graph_break(op, layout, backend, fresh_compiler):
    case = NormCase("compiled", (1, 6, 3, 4, 6), 3, (2, 2, 3), layout)
    call = make_norm_call(op, case, torch.float32, 0)
    x = call.pop("x")

    def step(x):
        fresh = NORMS[op](x * 2, **call, backend=backend)
        buffer = FrameBuffer.empty(x.shape, head_room=2, memory_format=torch.channels_last_3d)
        buffer.storage.zero_()
        NORMS[op](fresh, **call, out=buffer, backend=backend)
        return fresh, buffer.storage

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, expected in zip(compiled(x), step(x), strict=True):
        assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5) and got.stride() == expected.stride()


@pytest.mark.one_backend
def test_compiled_into_the_body_that_is_read(op, backend, fresh_compiler):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    x = call.pop("x")

    def step(storage):
        buffer = FrameBuffer(storage, 2)
        NORMS[op](buffer.body, **call, out=buffer, backend=backend)

    plain, compiled = (in_buffer(x, 2).storage.nan_to_num() for _ in range(2))
    step(plain)
    torch.compile(step, fullgraph=True, backend="aot_eager")(compiled)
    assert torch.allclose(plain, compiled, rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.exhaustive
@pytest.mark.skipif(
    " " in torch.__file__, reason="torch's inductor does not quote the path it is installed in"
)
def test_compiles_with_inductor(op, backend, fresh_compiler):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    x = call.pop("x")

    def step(x):
        return NORMS[op](x.relu(), **call, backend=backend) * 2

    assert torch.allclose(torch.compile(step, fullgraph=True)(x), step(x), rtol=1e-4, atol=1e-4)


def test_a_tensor_whose_sign_is_a_flag(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    x = torch.view_as_complex(torch.stack([call["x"], call["x"]], -1)).conj().imag
    assert x.is_neg()
    call["x"] = x
    expected = NORMS[op](**(call | {"x": x.clone()}), backend="reference")
    assert torch.allclose(NORMS[op](**call, backend=backend), expected, atol=1e-4)
    buffer = FrameBuffer(torch.zeros_like(x), 0)
    NORMS[op](**call, out=buffer, backend=backend)
    assert torch.allclose(buffer.body, expected, atol=1e-4)


def test_in_place_refuses_to_lose_a_gradient(op):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    call["weight"].requires_grad_()
    buffer = in_buffer(call["x"], 1)
    with pytest.raises(InvalidInput, match=f"{op}: .* would lose it; leave out away"):
        NORMS[op](**call, out=buffer)
    with torch.no_grad():
        NORMS[op](**call, out=buffer)


def test_in_place_refuses_what_lies_in_part_under_the_body(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    x = call.pop("x")
    buffer = in_buffer(x, 1)
    shifted = buffer.storage[:, :, :-1]
    with pytest.raises(InvalidInput, match="expected other memory"):
        NORMS[op](shifted, **call, out=buffer, backend=backend)


def test_in_place_is_noticed_by_autograd(op, backend):
    """A native kernel writes behind autograd's back."""
    call = make_norm_call(op, SMALL, torch.float32, 0)
    buffer = FrameBuffer(torch.ones_like(call["x"]), 0)
    leaf = torch.ones_like(call["x"]).requires_grad_()
    product = leaf * buffer.body
    NORMS[op](**call, out=buffer, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "five dimensions"),
        ({"x": torch.zeros(2, 6, 0, 4, 6)}, "at least one"),
        ({"x": torch.zeros(2, 6, 3, 4, 6, dtype=torch.int32)}, "expected float32"),
        ({"weight": torch.zeros(5)}, r"expected \(6,\) = \(C,\)"),
        ({"weight": torch.zeros(6, dtype=torch.float64)}, "weight is torch.float64 and x is torch.float32"),
        ({"bias": torch.zeros(6, dtype=torch.bfloat16)}, "bias is torch.bfloat16"),
        ({"eps": -1e-6}, "eps is -1e-06, expected a number that is not negative"),
        ({"activation": True}, "activation is True, expected 'silu' or None"),
        ({"activation": "relu"}, "activation is 'relu', expected 'silu' or None"),
        ({"backend": "fast"}, "expected one of"),
        ({"precision": "best"}, "expected one of"),
    ],
)
def test_bad_input_gets_a_sentence(op, change, words):
    call = make_norm_call(op, SMALL, torch.float32, 0) | change
    with pytest.raises(InvalidInput, match=words):
        NORMS[op](**call)
    if "backend" not in change and "precision" not in change:
        buffer = FrameBuffer(torch.zeros(SMALL.shape), 0)
        with pytest.raises(InvalidInput, match=words):
            NORMS[op](**call, out=buffer)


def test_out_is_given_back_and_may_be_a_tensor(op, backend):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    expected = NORMS[op](**call, backend="reference")
    space = torch.full([2 * n for n in SMALL.shape], 7.0)
    cut = space[tuple(slice(0, 2 * n, 2) for n in SMALL.shape)]
    for out in (torch.zeros(SMALL.shape), cut, in_buffer(torch.zeros(SMALL.shape), 2)):
        assert NORMS[op](**call, out=out, backend=backend) is out
        assert torch.allclose(out.body if isinstance(out, FrameBuffer) else out, expected, atol=1e-5)
    cut.fill_(7.0)
    assert (space == 7.0).all()


def test_out_is_checked(op):
    call = make_norm_call(op, SMALL, torch.float32, 0)
    for buffer, words in (
        ([1.0], "out is a list, expected a tensor"),
        (torch.zeros(SMALL.shape, dtype=torch.bfloat16), "out is torch.bfloat16"),
        (FrameBuffer(torch.zeros(2, 6, 3, 4, 5), 0), "out has shape"),
        (FrameBuffer(torch.zeros(SMALL.shape, dtype=torch.bfloat16), 0), "out is torch.bfloat16"),
    ):
        with pytest.raises(InvalidInput, match=words):
            NORMS[op](**call, out=buffer)


@torch.no_grad()
def test_the_frameworks_silu_writes_over_the_norm():
    x = torch.randn(1, 8, 3, 16, 16)
    for activation in (None, "silu"):
        norm = functools.partial(group_norm, x, 2, activation=activation, backend="aten")
        norm()
        assert peak_allocated(norm) <= 1.25 * x.nbytes


def test_repeats_that_no_kernel_knows_name_the_first_frame_where_it_stands_alone():
    assert "(5, 6, 6) behind the first frame by" in why_not_repeated((5, 6, 6), (2, 2, 2))
    assert "(4, 6, 6) by" in why_not_repeated((4, 6, 6), (2, 2, 2))
    assert "(1, 6, 6) by" in why_not_repeated((1, 6, 6), (1, 2, 2))


def test_the_bytes_of_a_spatial_norm_are_x_three_times_and_each_factor_once():
    x, small = torch.empty(2, 8, 3, 4, 5), torch.empty(2, 8, 2, 1, 2)
    moved = explain(spatial_norm, x, small, small, 4).work.bytes
    assert moved == 4 * (3 * x.numel() + 2 * small.numel())
