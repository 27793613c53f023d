"""The Triton kernel of causal padding: its plan, anywhere; what it writes, in the interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causalvae_kernels import BackendUnavailable, FrameBuffer, causal_pad3d, causal_pad3d_
from causalvae_kernels.core.triton_runtime import interpreting
from causalvae_kernels.ops.causal_pad3d.backends.triton.plan import INDEX_LIMIT, plan_pad
from causalvae_kernels.workloads import PAD_CASES, make_pad_call, with_layout
from causalvae_kernels.workloads.cases import LAYOUTS

interpreted = pytest.mark.skipif(not interpreting(), reason="runs kernels on the CPU: TRITON_INTERPRET=1")


def _padded(x, case, fill):
    batch, channels, frames, height, width = x.shape
    top, bottom, left, right = case.spatial_padding
    shape = (batch, channels, case.causal_padding + frames, top + height + bottom, left + width + right)
    return torch.full(shape, fill, dtype=x.dtype)


def _arguments(call):
    """Return a call of `causal_pad3d` as the launch functions take it, without the frames."""
    return (
        call.get("initial_state"),
        call["causal_padding"],
        call["spatial_padding"],
        call.get("temporal_mode", "replicate"),
        call.get("spatial_mode", "zeros"),
    )


@interpreted
@pytest.mark.parametrize("layout", ["contiguous", "channels_last_3d", "permuted"])
@pytest.mark.parametrize("case", PAD_CASES, ids=lambda c: c.name)
def test_in_place_writes_the_border_and_nothing_else(case, layout, seed):
    """The frames are read from another tensor here, so that a write into the body would show."""
    from causalvae_kernels.ops.causal_pad3d.backends.triton.kernels import launch_plan

    call = make_pad_call(case, torch.int32, seed)
    x, untouched = call["x"], -(2**31)
    storage = with_layout(_padded(x, case, untouched), layout)
    expected = causal_pad3d(**call, backend="reference")
    FrameBuffer(expected, case.causal_padding, case.spatial_padding).body.fill_(untouched)
    plan = plan_pad(storage, x, *_arguments(call), in_place=True)
    if plan.programs:
        launch_plan(plan)
    else:
        assert case.name == "nothing to pad"
    assert torch.equal(storage, expected)


@interpreted
@pytest.mark.parametrize(
    "layouts",
    [
        ("contiguous", "channels_last_3d"),
        ("channels_last_3d", "contiguous"),
        ("permuted", "channels_last_3d"),
        ("sliced", "permuted"),
        ("channels_last_3d", "sliced"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize("case", [c for c in PAD_CASES if c.layout != "permuted"], ids=lambda c: c.name)
def test_layout_changes_on_the_way(case, layouts, seed):
    from causalvae_kernels.ops.causal_pad3d.backends.triton.kernels import launch_pad

    call = make_pad_call(case, torch.bfloat16, seed)
    out = with_layout(_padded(call["x"], case, float("nan")), layouts[1])
    expected = causal_pad3d(**call, backend="reference")
    x = with_layout(call["x"], layouts[0])
    launch_pad(out, x, *_arguments(call))
    assert torch.equal(out, expected)


@interpreted
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_vectors_tiles_and_layouts_mixed_at_random(data):
    """Sizes around multiples of a vector and of a tile, three layouts independent of each other."""
    from causalvae_kernels.ops.causal_pad3d.backends.triton.kernels import launch_pad, launch_pad_

    dtype = data.draw(st.sampled_from([torch.int8, torch.int16, torch.int32, torch.int64]))
    size = st.sampled_from([1, 3, 8, 16, 17, 32, 40])
    shape = (data.draw(st.integers(1, 2)), data.draw(size), data.draw(st.integers(1, 2)), 2, data.draw(size))
    if data.draw(st.booleans()):
        shape = (*shape[:3], shape[4], shape[3])
    spatial_mode = data.draw(st.sampled_from(["zeros", "replicate", "reflect"]))
    most = 0 if 1 in shape[3:] and spatial_mode == "reflect" else 1
    halo = tuple(data.draw(st.integers(0, most)) for _ in range(4))
    padding = data.draw(st.integers(0, 2))
    layout, state_layout, out_layout = (data.draw(st.sampled_from(LAYOUTS)) for _ in range(3))

    def random(*shape):
        return torch.randint(-100, 100, shape).to(dtype)

    x = with_layout(random(*shape), layout)
    state = with_layout(random(*shape[:2], padding, *shape[3:]), state_layout)
    state = state if padding and data.draw(st.booleans()) else None
    mode = data.draw(st.sampled_from(["replicate", "zeros"]))
    keywords = {"initial_state": state, "temporal_mode": mode, "spatial_mode": spatial_mode}
    expected = causal_pad3d(x, padding, halo, **keywords, backend="reference")
    out = with_layout(torch.full_like(expected, 111), out_layout)
    launch_pad(out, x, state, padding, halo, mode, spatial_mode)
    assert torch.equal(out, expected)
    buffer = FrameBuffer(with_layout(torch.full_like(expected, 111), out_layout), padding, halo)
    buffer.body.copy_(x)
    launch_pad_(buffer.storage, state, padding, halo, mode, spatial_mode)
    assert torch.equal(buffer.storage, expected)


@interpreted
@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn, torch.int64, torch.complex64], ids=str)
def test_dtypes_without_arithmetic(dtype):
    raw = torch.randint(
        0, 2, (1, 5, 3, 4, 6 * torch.empty((), dtype=dtype).element_size()), dtype=torch.uint8
    )
    x = raw.view(dtype)
    got = causal_pad3d(x, 2, 1, spatial_mode="replicate", backend="triton")
    items = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    expected = causal_pad3d(x.view(items), 2, 1, spatial_mode="replicate", backend="reference")
    assert got.dtype == dtype and torch.equal(got.view(items), expected)


@interpreted
def test_sixteen_byte_items_are_refused():
    x = torch.zeros(1, 1, 2, 3, 4, dtype=torch.complex128)
    with pytest.raises(BackendUnavailable, match="complex128 has 16 bytes, the kernel copies 1, 2, 4 or 8"):
        causal_pad3d(x, 1, backend="triton")
    with pytest.raises(BackendUnavailable, match="has 16 bytes"):
        causal_pad3d_(FrameBuffer(x, 1), backend="triton")


@interpreted
def test_more_programs_than_32_bits_count_are_refused():
    """A tensor of one item, shown as 2**31 rows of one pixel; nothing is allocated."""
    rows = torch.zeros(1, dtype=torch.uint8).expand(1, 1, 1, 2**31, 1)
    with pytest.raises(
        BackendUnavailable, match=f"takes 21474836\\d\\d steps, the kernel counts to {INDEX_LIMIT}"
    ):
        causal_pad3d(rows, 0, (1, 0, 0, 0), backend="triton")
    columns = torch.zeros(1, dtype=torch.uint8).expand(1, 1, 1, 2**31, 2)
    with pytest.raises(BackendUnavailable, match="the kernel counts to"):
        causal_pad3d_(FrameBuffer(columns, 0, (0, 0, 1, 0)), backend="triton")


def _plan(shape, layout, padding, halo, *, dtype=torch.bfloat16, in_place=True):
    batch, channels, frames, height, width = shape
    top, bottom, left, right = halo
    padded = (batch, channels, padding + frames, top + height + bottom, left + width + right)
    storage = with_layout(torch.empty(padded, dtype=dtype), layout)
    body = FrameBuffer(storage, padding, halo).body
    return plan_pad(storage, body, None, padding, halo, "replicate", "zeros", in_place=in_place)


def test_plan_counts_border_programs_only():
    """Head-room of two frames, read once for both; of 9 frames nothing else is visited."""
    plan = _plan((1, 128, 9, 64, 64), "channels_last_3d", 2, (0, 0, 0, 0))
    assert (plan.constants["BLOCK_C"], plan.constants["BLOCK_W"]) == (1, 4096)  # a frame is one long row
    assert plan.programs == 128 * 64 * 64 // 4096
    halo = _plan((1, 128, 9, 62, 62), "channels_last_3d", 0, (1, 1, 1, 1))
    assert (halo.constants["BLOCK_C"], halo.constants["BLOCK_W"]) == (128, 32)
    # Two rows of 64 pixels and two columns of 62 for each frame, by 32 pixels.
    assert halo.programs == 9 * (2 * 2 + 4)


@pytest.mark.parametrize(
    ("shape", "layout", "halo", "align"),
    [
        ((1, 96, 3, 5, 7), "channels_last_3d", (1, 1, 1, 1), 8),
        ((1, 100, 3, 5, 7), "channels_last_3d", (1, 1, 1, 1), 1),
        ((1, 100, 3, 4, 8), "channels_last_3d", (0, 0, 0, 0), 8),  # a frame is one row of 3200 items
        ((1, 5, 3, 4, 6), "contiguous", (0, 0, 0, 0), 8),
        ((1, 5, 3, 3, 6), "contiguous", (0, 0, 0, 0), 1),
        ((1, 5, 3, 4, 16), "contiguous", (1, 1, 0, 0), 8),
        ((1, 5, 3, 4, 14), "contiguous", (0, 0, 1, 1), 1),
        ((1, 5, 3, 4, 16), "sliced", (0, 0, 0, 0), 0),
    ],
)
def test_plan_finds_wide_accesses(shape, layout, halo, align):
    constants = _plan(shape, layout, 2, halo).constants
    assert constants["OUT_ALIGN"] == constants["X_ALIGN"] == align
