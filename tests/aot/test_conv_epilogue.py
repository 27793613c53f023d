"""The kernel that adds bias and residual, compiled for every GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from causalvae_kernels.workloads import with_layout
from tests.aot.triton_aot import CAPABILITIES, Launch, needs_compiler, record_launches

pytestmark = needs_compiler

LAST, FIRST = "channels_last_3d", "contiguous"
FAST = {
    "channels last": ((1, 96, 4, 30, 52), (LAST, LAST)),
    "channels last, wide": ((1, 512, 2, 15, 23), (LAST, LAST)),
    "contiguous": ((1, 96, 4, 30, 52), (FIRST, FIRST)),
}
OTHERS = {
    "odd channels": ((1, 67, 2, 9, 11), (LAST, LAST)),
    "odd pixels": ((2, 16, 3, 5, 7), (FIRST, FIRST)),
    "mixed": ((1, 96, 4, 30, 52), (LAST, FIRST)),
    "mixed, contiguous": ((1, 96, 4, 30, 52), (FIRST, LAST)),
    "sliced": ((2, 128, 2, 5, 7), ("sliced", "permuted")),
}
HALVES = (torch.bfloat16, torch.float16)


def record(
    shape: tuple[int, ...], layouts: tuple[str, str], dtype: torch.dtype, capability: int = 90
) -> Launch:
    """Return what Triton would compile to add to an output of this shape."""
    from causalvae_kernels.ops.causal_conv3d.backends.triton.epilogue import launch

    def empty(layout: str) -> Tensor:
        return with_layout(torch.empty(shape, dtype=dtype, device="meta"), layout)

    bias = torch.empty(shape[1], dtype=dtype, device="meta")
    y, residual = map(empty, layouts)
    (found,) = record_launches(capability, lambda: launch(y, bias, residual).run())
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("case", [*FAST, *OTHERS])
def test_compiles_without_spills(case, dtype, capability):
    compiled = record(*(FAST | OTHERS)[case], dtype, capability).compile(capability)
    assert compiled.why_not_fit(capability) is None
    # Below 128, four blocks of 128 threads fit into a multiprocessor's 65,536 registers.
    assert compiled.registers <= 128


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("case", FAST)
def test_accesses_are_16_bytes_wide(case, dtype, capability):
    """Both tensors; the bias is read once per tile."""
    compiled = record(*FAST[case], dtype, capability).compile(capability)
    stores = [line for line in compiled.ptx.splitlines() if "st.global" in line]
    loads = [line for line in compiled.ptx.splitlines() if "ld.global" in line and ".v4.b32" in line]
    assert stores and all(".v4.b32" in line for line in stores)
    assert len(loads) >= 2 * len(stores)


def test_resolutions_compile_once():
    sizes = ((1, 30, 45), (2, 16, 16), (9, 60, 90), (4, 480, 720), (17, 1, 1))
    last = {record((1 + t % 2, 128, t, h, w), (LAST, LAST), torch.bfloat16).key for t, h, w in sizes}
    assert len(last) == 1
    first = {record((1 + t % 2, 128, 8, h, w), (FIRST, FIRST), torch.bfloat16).key for t, h, w in sizes}
    assert len(first) == 1
    assert record((1, 128, 1, 5, 7), (FIRST, FIRST), torch.bfloat16).key not in first  # no 16 bytes at a time
