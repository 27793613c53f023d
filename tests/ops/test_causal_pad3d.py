"""`causal_pad3d` and `causal_pad3d_`: every backend gives the reference's bits."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import FrameBuffer, InvalidInput, causal_pad3d, causal_pad3d_, use_backend
from causalvae_kernels.core.layout import is_channels_last_3d
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.parity import compare_pad, run_in_chunks
from causalvae_kernels.temporal import final_state
from causalvae_kernels.workloads import PAD_CASES, in_buffer, make_pad_call, with_layout
from tests.support.backends import BACKENDS, NAMES
from tests.support.cover import pairs, quick_rows

ANY_DTYPE = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int32)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OPS = torch.ops.causalvae_kernels
# The interpreter takes about 5 ms for every program of a kernel.
BATCH = 1 if interpreting() else 2


@pairs(case=PAD_CASES, any_dtype=ANY_DTYPE, backend=BACKENDS, in_place=[False, True])
def test_backend_gives_the_bits_of_the_reference(case, any_dtype, in_place, backend, seed):
    comparison = compare_pad(make_pad_call(case, any_dtype, seed), backend, in_place=in_place)
    assert comparison.passed, comparison


@pairs(case=PAD_CASES, floats=FLOATS, backend=BACKENDS)
def test_every_bit_pattern_survives(case, floats, backend, seed):
    """NaNs, quiet and signalling, carry a payload that arithmetic would lose."""
    ints = {2: torch.int16, 4: torch.int32, 8: torch.int64}[floats.itemsize]
    least, most = torch.iinfo(ints).min, torch.iinfo(ints).max
    exponent = torch.tensor(float("inf"), dtype=floats).view(ints)
    call = make_pad_call(case, ints, seed)
    generator = torch.Generator().manual_seed(seed)
    for name in call.keys() & {"x", "initial_state"}:
        bits = torch.randint(least, most, call[name].shape, dtype=ints, generator=generator)
        call[name].copy_(torch.where(bits % 3 == 0, bits, bits | exponent))
    assert call["x"].numel() < 9 or call["x"].view(floats).isnan().any()
    expected = causal_pad3d(**call, backend="reference")
    call |= {name: call[name].view(floats) for name in call.keys() & {"x", "initial_state"}}
    assert torch.equal(causal_pad3d(**call, backend=backend).view(ints), expected)
    buffer = in_buffer(call.pop("x"), call.pop("causal_padding"), call.pop("spatial_padding"))
    causal_pad3d_(buffer, **call, backend=backend)
    assert torch.equal(buffer.storage.view(ints), expected)


@pytest.mark.parametrize("case", [c for c in PAD_CASES if "reflect" not in c.name], ids=lambda c: c.name)
def test_reference_against_the_frameworks_pad(case, seed):
    call = make_pad_call(case, torch.float64, seed)
    x, frames = call["x"], case.causal_padding
    past = call.get("initial_state")
    if past is None:
        past = x[:, :, :1].repeat(1, 1, frames, 1, 1)
        past = torch.zeros_like(past) if call.get("temporal_mode") == "zeros" else past
    top, bottom, left, right = case.spatial_padding
    mode = "replicate" if call.get("spatial_mode") == "replicate" else "constant"
    expected = F.pad(torch.cat([past, x], dim=2), (left, right, top, bottom, 0, 0), mode=mode)
    assert torch.equal(causal_pad3d(**call, backend="reference"), expected)


def test_reference_reflects_as_the_framework_does(seed):
    x = torch.randn(1, 2, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    expected = F.pad(x, (4, 3, 2, 1, 0, 0), mode="reflect")
    got = causal_pad3d(x, 0, (2, 1, 4, 3), spatial_mode="reflect", backend="reference")
    assert torch.equal(got, expected)


@given(data=st.data())
@settings(max_examples=15 if interpreting() else 60, deadline=None)
def test_random_shapes_strides_and_modes(data):
    size = st.integers(1, 6)
    shape = tuple(data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9), size, size, size)))
    mode = data.draw(st.sampled_from(["zeros", "replicate", "reflect"]))
    most = (shape[3] - 1, shape[4] - 1) if mode == "reflect" else (4, 4)
    sides = tuple(data.draw(st.integers(0, most[i // 2])) for i in range(4))
    frames = data.draw(st.integers(0, 4))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last_3d", "sliced", "permuted"]))
    x = with_layout(torch.randn(shape), layout)
    call = {
        "x": x,
        "causal_padding": frames,
        "spatial_padding": sides,
        "spatial_mode": mode,
        "temporal_mode": data.draw(st.sampled_from(["replicate", "zeros"])),
    }
    if data.draw(st.booleans()):
        call["initial_state"] = (
            with_layout(torch.randn(*shape[:2], frames, *shape[3:]), layout) if frames else None
        )
    for name in NAMES:
        assert compare_pad(call, name, in_place=False).passed
        assert compare_pad(call, name, in_place=True).passed


def test_in_place_leaves_the_body_alone(backend):
    x = torch.randn(2, 3, 4, 5, 6)
    buffer = in_buffer(x, 2, (1, 1, 2, 0))
    causal_pad3d_(buffer, spatial_mode="replicate", backend=backend)
    assert torch.equal(buffer.body, x)
    assert buffer.storage.isfinite().all()


@pairs(chunks=[(7,), (1,) * 7, (1, 2, 4), (5, 2), (3, 1, 3)], mode=["replicate", "zeros"], backend=BACKENDS)
def test_chunks_equal_the_whole_bit_by_bit(chunks, mode, backend):
    x = torch.randn(2, 3, 7, 4, 5)
    frames = 3

    def pad(chunk, initial_state):
        padded = causal_pad3d(
            chunk, frames, 1, temporal_mode=mode, initial_state=initial_state, backend=backend
        )
        state = final_state(chunk, frames, initial_state=initial_state, temporal_mode=mode)
        return padded[:, :, frames:], state

    whole = causal_pad3d(x, frames, 1, temporal_mode=mode, backend=backend)
    got, state = run_in_chunks(pad, x, chunks)
    assert torch.equal(got, whole[:, :, frames:])
    assert torch.equal(state, x[:, :, -frames:])
    first = x[:, :, : chunks[0]]
    head = causal_pad3d(first, frames, 1, temporal_mode=mode, backend=backend)
    assert torch.equal(head[:, :, :frames], whole[:, :, :frames])


def test_state_of_a_short_chunk_reaches_back():
    past, x = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 1, 4, 4)
    state = final_state(x, 3, initial_state=past)
    assert torch.equal(state, torch.cat([past[:, :, 1:], x], dim=2))
    assert torch.equal(final_state(x, 3), x.repeat(1, 1, 3, 1, 1))
    zeros = final_state(x, 3, temporal_mode="zeros")
    assert torch.equal(zeros, torch.cat([torch.zeros(1, 2, 2, 4, 4), x], dim=2))


def test_state_owns_its_memory():
    x = torch.randn(1, 2, 5, 4, 4)
    state = final_state(x, 2)
    x.zero_()
    assert state.abs().sum() > 0


def test_memory_format_follows_the_input(backend):
    x = torch.randn(1, 4, 2, 5, 6)
    assert causal_pad3d(x, 2, 1, backend=backend).is_contiguous()
    last = x.contiguous(memory_format=torch.channels_last_3d)
    padded = causal_pad3d(last, 2, 1, backend=backend)
    assert padded.is_contiguous(memory_format=torch.channels_last_3d)
    body = in_buffer(last, 2, (1, 1, 1, 1)).body
    assert is_channels_last_3d(body)
    assert causal_pad3d(body, 1, backend=backend).is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.exhaustive  # tests/ops/test_declaration.py checks one layout of every op
@pytest.mark.one_backend
@pairs(
    spatial_mode=["zeros", "replicate", "reflect"],
    layout=["contiguous", "channels_last_3d", "sliced"],
    state=[False, True],
    backend=BACKENDS,
)
def test_opcheck(spatial_mode, layout, state, backend):
    x = with_layout(torch.randn(BATCH, 3, 2, 4, 5), layout).requires_grad_()
    past = torch.randn(BATCH, 3, 2, 4, 5).requires_grad_() if state else None
    torch.library.opcheck(
        OPS.causal_pad3d.default, (x, past, 2, (1, 2, 0, 3), "replicate", spatial_mode, backend, "")
    )
    storage = in_buffer(x.detach(), 2, (1, 2, 0, 3)).storage.nan_to_num()
    past = None if past is None else past.detach()
    torch.library.opcheck(
        OPS.causal_pad3d_.default, (storage, past, 2, (1, 2, 0, 3), "replicate", spatial_mode, backend, "")
    )


@pytest.mark.parametrize(
    ("spatial_mode", "temporal_mode"),
    quick_rows(
        list(product(["zeros", "replicate", "reflect"], ["replicate", "zeros", "state"])),
        [("zeros", "replicate"), ("replicate", "state"), ("reflect", "zeros")],
    ),
)
def test_gradients(spatial_mode, temporal_mode):
    x = torch.randn(1, 2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    past = torch.randn(1, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)

    def pad(x, past):
        state = past if temporal_mode == "state" else None
        mode = "zeros" if temporal_mode == "zeros" else "replicate"
        return causal_pad3d(
            x, 3, (1, 2, 2, 0), temporal_mode=mode, spatial_mode=spatial_mode, initial_state=state
        )

    assert torch.autograd.gradcheck(pad, (x, past))
    assert torch.autograd.gradgradcheck(pad, (x, past))


@pytest.mark.one_backend
def test_compiles_without_a_graph_break(backend):
    def pad(x):
        buffer = FrameBuffer.empty(x.shape, head_room=2, halo=(1, 1, 1, 1))
        buffer.body.copy_(x * 2)
        causal_pad3d_(buffer, backend=backend)
        return buffer.storage, causal_pad3d(x + 1, 2, 1, spatial_mode="reflect", backend=backend)

    x = torch.randn(1, 3, 4, 5, 6)
    compiled = torch.compile(pad, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(x), pad(x), strict=True):
        assert torch.equal(got, expected) and got.stride() == expected.stride()


def test_in_place_refuses_to_lose_a_gradient():
    buffer = FrameBuffer(torch.zeros(1, 1, 3, 2, 2, requires_grad=True), 2)
    with pytest.raises(InvalidInput, match="use causal_pad3d"):
        causal_pad3d_(buffer)
    with torch.no_grad():
        causal_pad3d_(buffer)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "five dimensions"),
        ({"x": torch.zeros(1, 3, 0, 4, 4)}, "at least one"),
        ({"x": [1, 2]}, "expected a tensor"),
        ({"causal_padding": -1}, "frames >= 0"),
        ({"spatial_padding": (1, 2, 3)}, "4 ints"),
        ({"spatial_padding": -1}, "nothing negative"),
        ({"spatial_mode": "mirror"}, "expected one of 'zeros', 'replicate', 'reflect'"),
        ({"temporal_mode": "last"}, "expected one of 'replicate', 'zeros'"),
        ({"spatial_mode": "reflect", "spatial_padding": 4}, "use 'replicate'"),
        ({"initial_state": torch.zeros(1, 2, 1, 4, 4)}, r"\(1, 2, 2, 4, 4\)"),
        ({"initial_state": torch.zeros(1, 2, 2, 4, 4, dtype=torch.float64)}, "one dtype"),
        ({"backend": "fast"}, "expected one of"),
    ],
)
def test_bad_input_gets_a_sentence(change, words):
    call = {"x": torch.zeros(1, 2, 3, 4, 4), "causal_padding": 2} | change
    with pytest.raises(InvalidInput, match=words):
        causal_pad3d(**call)


def test_in_place_takes_buffers_only():
    with pytest.raises(InvalidInput, match="expected a FrameBuffer"):
        causal_pad3d_(torch.zeros(1, 1, 1, 1, 1))


@pytest.mark.one_backend
def test_64_bit_sizes(backend):
    """A tensor of more than 2**31 elements: a stride that 32 bits cannot hold."""
    frames, size = 2, 3
    wide = torch.empty(1, dtype=torch.uint8).expand(2**31 + 7)
    x = wide.as_strided((1, 1, frames, size, size), (1, 1, 0, 0, 0))
    with use_backend(backend):
        assert causal_pad3d(x, 1).shape == (1, 1, frames + 1, size, size)
    storage = torch.zeros(2**31 + 64, dtype=torch.uint8)
    far = storage.as_strided((1, 2, 3, 1, 4), (1, 2**31, 8, 8, 1))
    far[:, :, 1:] = 7
    causal_pad3d_(FrameBuffer(far, 1), backend=backend)
    assert (far == 7).all()


def test_conjugate_and_negative_views_are_padded_as_they_read(backend):
    """Their bits are those of another tensor; the dispatcher resolves them."""
    x = torch.view_as_complex(torch.randn(1, 2, 3, 4, 5, 2)).conj()
    for view in (x, x.imag):
        assert view.is_conj() or view.is_neg()
        assert torch.equal(
            causal_pad3d(view, 2, backend=backend), causal_pad3d(view.clone(), 2, backend="reference")
        )
