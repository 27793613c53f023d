"""The compile harness: it sees spills, shared memory and what a launch would compile."""

from __future__ import annotations

import pytest
import torch

from tests.aot.triton_aot import CAPABILITIES, compile_kernel, needs_compiler, record_launches

pytestmark = needs_compiler


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_alignment_widens_the_accesses(capability):
    from tests.aot.probe_kernels import copy

    types, constants = {"out_ptr": "*i16", "x_ptr": "*i16", "n": "i32"}, {"BLOCK": 1024}
    aligned, any_address = (
        compile_kernel(copy, types, constants, capability, num_warps=4, num_stages=1, divisible=names)
        for names in (("out_ptr", "x_ptr", "n"), ())
    )
    assert "ld.global.v4.b32" in aligned.ptx and "st.global.v4.b32" in aligned.ptx
    assert "STG.E.128" in aligned.sass
    assert "v4.b32" not in any_address.ptx and "STG.E.128" not in any_address.sass
    for compiled in (aligned, any_address):
        assert f"sm_{capability}" in compiled.ptx
        assert 0 < compiled.registers <= 255 and compiled.shared_bytes == 0
        assert compiled.why_not_fit(capability) is None


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_spills_are_seen(capability):
    from tests.aot.probe_kernels import hoard

    types, constants = {"out_ptr": "*i32", "x_ptr": "*i32"}, {"BLOCK": 16384}
    compiled = compile_kernel(hoard, types, constants, capability, num_warps=1, num_stages=1)
    # 512 items a thread, and at most 255 registers.
    assert compiled.spill_bytes >= 4 * (512 - 255)
    assert compiled.stack_bytes >= 4 * (512 - 255)
    assert "bytes spilled" in compiled.why_not_fit(capability)


def test_shared_memory_is_counted():
    from tests.aot.probe_kernels import transpose

    types, constants = {"out_ptr": "*i64", "x_ptr": "*i64"}, {"BLOCK": 128}
    compiled = compile_kernel(transpose, types, constants, 90, num_warps=8, num_stages=1)
    assert 128 * 128 * 8 <= compiled.shared_bytes <= 227 * 1024
    assert compiled.why_not_fit(90) is None
    assert f"a block has {99 * 1024}" in compiled.why_not_fit(86)


def test_arguments_are_checked():
    from tests.aot.probe_kernels import copy

    with pytest.raises(ValueError, match="expected each of"):
        compile_kernel(copy, {"out_ptr": "*i16"}, {"BLOCK": 64}, 90, num_warps=4, num_stages=1)


def test_launches_are_recorded_with_tritons_own_keys():
    from tests.aot.probe_kernels import copy

    x, shifted = torch.zeros(64, dtype=torch.int16), torch.zeros(65, dtype=torch.int16)[1:]

    def call() -> None:
        copy[(1,)](x, x, 48, BLOCK=1024, enable_fp_fusion=True)
        copy[(1,)](x, x, 32, BLOCK=1024, enable_fp_fusion=True)
        copy[(1,)](x, x, 33, BLOCK=1024, enable_fp_fusion=True)
        copy[(1,)](x, shifted, 32, BLOCK=1024, enable_fp_fusion=False, num_warps=2)

    first, second, odd, unaligned = record_launches(90, call)
    assert first.key == second.key and len({first.key, odd.key, unaligned.key}) == 3
    assert first.signature == {"out_ptr": "*i16", "x_ptr": "*i16", "n": "i32"}
    assert first.constants == {"BLOCK": 1024}
    assert first.divisible == ("out_ptr", "x_ptr", "n") and unaligned.divisible == ("out_ptr", "n")
    assert (first.num_warps, unaligned.num_warps) == (4, 2)
    assert (first.enable_fp_fusion, unaligned.enable_fp_fusion) == (True, False)
    assert "st.global.v4.b32" in first.compile(90).ptx
    assert "st.global.v4.b32" not in odd.compile(90).ptx
