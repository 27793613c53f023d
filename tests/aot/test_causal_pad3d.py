"""The Triton kernel of causal padding, compiled for every GPU as its launch functions launch it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import pytest
import torch

from causalvae_kernels.workloads import with_layout
from tests.aot.triton_aot import CAPABILITIES, Launch, needs_compiler, record_launches

pytestmark = needs_compiler

NONE, ROWS, COLUMNS, ALL = (0, 0, 0, 0), (1, 1, 0, 0), (0, 0, 2, 1), (1, 1, 1, 1)


class Call(NamedTuple):
    """A call of a launch function; each field is an axis of `AXES`."""

    in_place: bool
    layouts: tuple[str, str, str]  # of `out`, the frames and the state
    dtype: torch.dtype
    temporal: str
    spatial: str
    halo: tuple[int, int, int, int]
    channels: int
    size: tuple[int, int]


LAST, FIRST, STRIDED = "channels_last_3d", "contiguous", "sliced"
AXES = Call(
    (False, True),
    ((LAST,) * 3, (FIRST,) * 3, (LAST, FIRST, FIRST), (FIRST, LAST, FIRST), (LAST, LAST, STRIDED)),
    (torch.bfloat16, torch.uint8, torch.float32, torch.float64),
    ("replicate", "zeros", "state"),
    ("zeros", "replicate", "reflect"),
    (NONE, ALL, ROWS, COLUMNS),
    (160, 3, 128, 512),
    ((32, 64), (30, 50), (15, 21)),
)


def _covering() -> list[Call]:
    """Return calls that hold every pair of values of two axes; greedily, so that they are few."""
    missing = {
        ((i, a), (j, b))
        for i, j in itertools.combinations(range(len(AXES)), 2)
        for a in AXES[i]
        for b in AXES[j]
    }
    every = [Call(*values) for values in itertools.product(*AXES)]
    calls = []
    while missing:
        # Looking at every 37th is enough to find a good one, and 37 divides no axis.
        sample = every[len(calls) % 37 :: 37]
        best = max(sample, key=lambda call: len(missing & _pairs(call)))
        if not missing & _pairs(best):
            (i, a), (j, b) = next(iter(sorted(missing, key=repr)))
            best = next(c for c in every if c[i] == a and c[j] == b)
        calls.append(best)
        missing -= _pairs(best)
    return calls


def _pairs(call: Call) -> set[tuple[tuple[int, object], tuple[int, object]]]:
    return set(itertools.combinations(enumerate(call), 2))


def _id(call: Call) -> str:
    layouts = "-".join(call.layouts)
    dtype = str(call.dtype).removeprefix("torch.")
    size = "x".join(map(str, call.size))
    where = "in place" if call.in_place else "fresh"
    return f"{where} {layouts} {dtype} {call.temporal} {call.spatial} {call.halo} {call.channels} {size}"


def _record(call: Call, capability: int, frames: int = 3, batch: int = 2) -> Launch:
    """Return what this call would compile; in place, frames and `out` share a layout."""
    from causalvae_kernels.ops.causal_pad3d.backends.triton.kernels import launch_pad, launch_pad_

    def empty(layout: str, frames: int, height: int, width: int) -> torch.Tensor:
        shape = (batch, call.channels, frames, height, width)
        return with_layout(torch.empty(shape, dtype=call.dtype, device="meta"), layout)

    top, bottom, left, right = call.halo
    height, width = call.size
    out = empty(call.layouts[0], 2 + frames, top + height + bottom, left + width + right)
    x = empty(call.layouts[1], frames, height, width)
    state = empty(call.layouts[2], 2, height, width) if call.temporal == "state" else None
    rest = (state, 2, call.halo, "zeros" if call.temporal == "zeros" else "replicate", call.spatial)
    launch = (lambda: launch_pad_(out, *rest)) if call.in_place else (lambda: launch_pad(out, x, *rest))
    (recorded,) = record_launches(capability, launch)
    return recorded


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("call", _covering(), ids=_id)
def test_compiles_without_spills_within_shared_memory(call, capability):
    launch = _record(call, capability)
    compiled = launch.compile(capability)
    assert compiled.why_not_fit(capability) is None
    # Below 128, four blocks of 128 threads fit into a multiprocessor's 65,536 registers.
    assert compiled.registers <= 128
    layouts = {launch.constants[name] for name in ("OUT_LAST", "X_LAST", "STATE_LAST")}
    # A tile is at most 8 KB, and turning it pads its rows. Triton 3.6 also moves masks through it.
    assert (0 if len(layouts) == 1 else 1) <= compiled.shared_bytes <= 12 * 1024


WIDE = {
    "head-room, channels last": Call(
        True, (LAST,) * 3, torch.bfloat16, "replicate", "zeros", NONE, 128, (30, 45)
    ),
    "head-room": Call(True, (FIRST,) * 3, torch.bfloat16, "replicate", "zeros", NONE, 16, (30, 48)),
    "state": Call(True, (LAST,) * 3, torch.float32, "state", "zeros", NONE, 3, (32, 64)),
    "halo": Call(True, (LAST,) * 3, torch.bfloat16, "replicate", "reflect", ALL, 96, (31, 45)),
    "bytes": Call(True, (LAST,) * 3, torch.uint8, "zeros", "replicate", ALL, 160, (31, 45)),
    "rows above and below": Call(False, (FIRST,) * 3, torch.float16, "zeros", "replicate", ROWS, 5, (7, 64)),
    "cat and pad": Call(False, (LAST,) * 3, torch.bfloat16, "state", "zeros", ALL, 160, (31, 45)),
    "cat and pad, 8 bytes": Call(False, (LAST,) * 3, torch.float64, "replicate", "zeros", ALL, 160, (31, 45)),
    "to channels last": Call(
        False, (LAST, FIRST, FIRST), torch.bfloat16, "state", "zeros", NONE, 160, (32, 64)
    ),
    "from channels last": Call(
        False, (FIRST, LAST, LAST), torch.bfloat16, "zeros", "zeros", NONE, 96, (32, 64)
    ),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", WIDE)
def test_accesses_are_16_bytes_wide(name, capability):
    """Every load and store of global memory, where the innermost dimension allows it."""
    compiled = _record(WIDE[name], capability).compile(capability)
    accesses = [line for line in compiled.ptx.splitlines() if "ld.global" in line or "st.global" in line]
    wide = [line for line in accesses if ".v4.b32" in line or ".v2.b64" in line]
    assert accesses == wide
    assert any("ld.global" in line for line in wide) and any("st.global" in line for line in wide)
    assert "LDG.E.128" in compiled.sass and "STG.E.128" in compiled.sass


def test_half_of_a_padded_layout_change_is_wide():
    """Rows of 47 items cannot be read by 16 bytes, and writing along the channels can."""
    call = Call(False, (LAST, FIRST, FIRST), torch.bfloat16, "replicate", "zeros", ALL, 128, (31, 47))
    ptx = _record(call, 90).compile(90).ptx
    assert "st.global.v4.b32" in ptx and "ld.global.v4.b32" not in ptx
    assert all(".v4.b32" in line for line in ptx.splitlines() if "st.global" in line)


RESOLUTIONS = (
    *((480, 720), (480, 832), (720, 1280), (704, 1280), (352, 640)),
    *((256, 256), (240, 416), (60, 90), (88, 160), (16, 16)),
)


def _keys(call: Call, sizes: Iterable[tuple[int, int]]) -> set[str]:
    """Return the keys of these resolutions, each with another number of frames and another batch."""
    return {
        _record(call._replace(size=size), 90, frames=1 + number % 4, batch=1 + number % 2).key
        for number, size in enumerate(sizes)
    }


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "fresh"])
@pytest.mark.parametrize("halo", [NONE, ALL], ids=["head-room only", "with a halo"])
@pytest.mark.parametrize("layouts", [(LAST,) * 3, (FIRST,) * 3, (LAST, FIRST, FIRST)], ids="-".join)
@pytest.mark.parametrize("temporal", ["replicate", "state"])
def test_ten_resolutions_compile_once(temporal, layouts, halo, in_place):
    """Counted by Triton's own keys; a frame whose strides 32 bits cannot hold is no other case."""
    call = Call(in_place, layouts, torch.bfloat16, temporal, "zeros", halo, 16, (0, 0))
    assert len(_keys(call, RESOLUTIONS)) == 1
    huge = _record(call._replace(size=(8640, 15360)), 90, frames=4, batch=2)
    assert 16 * 6 * 8640 * 15360 > 2**31
    assert {huge.key} == _keys(call, RESOLUTIONS[:1])
    assert {huge.signature[name] for name in huge.signature if name.startswith("stride_")} == {"i64"}


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "fresh"])
def test_sizes_that_no_vector_divides_compile_once_more(in_place):
    """With channels last only their number counts; with rows innermost, whether 8 items divide a frame."""
    odd = [(15, 21), (30, 45), (61, 91), (9, 9), (135, 241)]
    call = Call(in_place, (LAST,) * 3, torch.bfloat16, "replicate", "zeros", ALL, 16, (0, 0))
    assert len(_keys(call, [*RESOLUTIONS, *odd])) == 1
    call = call._replace(layouts=(FIRST,) * 3, halo=NONE)
    assert len(_keys(call, odd)) == 1
    assert len(_keys(call, [*RESOLUTIONS, *odd])) == 2


def test_recorded_keys_tell_configurations_apart():
    """Were the keys blind, the tests above would pass whatever the kernel did."""
    call = Call(True, (LAST,) * 3, torch.bfloat16, "replicate", "zeros", ALL, 16, (16, 16))
    others = [
        call._replace(in_place=False),
        call._replace(dtype=torch.float32),
        call._replace(temporal="zeros"),
        call._replace(spatial="reflect"),
        call._replace(channels=128),
    ]
    assert len({_record(c, 90).key for c in [call, *others]}) == 1 + len(others)
