"""The Triton kernels of the norm ops, compiled for every GPU as the backend launches them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels.core.op import op_named
from causalvae_kernels.workloads import with_layout
from tests.aot.triton_aot import CAPABILITIES, Launch, needs_compiler, record_launches

pytestmark = needs_compiler

LAST, FIRST = "channels_last_3d", "contiguous"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (shape, layouts of x and out): those of models first, then what is read element by element.
FAST = {
    "128 channels": ((1, 128, 4, 30, 45), (LAST, LAST)),
    "512 channels": ((1, 512, 2, 15, 24), (LAST, LAST)),
    "96 channels": ((1, 96, 4, 30, 52), (LAST, LAST)),
    "contiguous": ((1, 96, 4, 30, 56), (FIRST, FIRST)),
}
OTHERS = {
    "odd channels": ((2, 66, 3, 9, 11), (LAST, LAST)),
    "odd pixels": ((2, 16, 3, 5, 7), (FIRST, FIRST)),
    "to channels last": ((1, 96, 4, 30, 56), (FIRST, LAST)),
    "from channels last": ((1, 160, 4, 30, 56), (LAST, FIRST)),
    "sliced": ((2, 128, 2, 6, 8), ("sliced", "permuted")),
    "more channels than a block": ((1, 1280, 1, 4, 4), (LAST, LAST)),
}
OPS = ("group_norm", "spatial_norm", "rms_norm")


def record(
    op: str, shape: tuple[int, ...], layouts: tuple[str, str], dtype: torch.dtype, capability: int = 90
) -> list[Launch]:
    """Return what Triton would compile to normalise into a tensor of this shape."""

    def empty(layout: str, size: tuple[int, ...] = shape) -> Tensor:
        return with_layout(torch.empty(size, dtype=dtype, device="meta"), layout)

    x, out = map(empty, layouts)
    weight, bias = (torch.empty(shape[1], dtype=dtype, device="meta") for _ in range(2))
    small = (*shape[:2], 2, shape[3] // 2, shape[4] // 2) if shape[2] > 1 else shape
    small = small if not any(n % 2 for n in shape[3:]) and shape[2] in (2, 4) else shape
    scale, shift = (empty(layouts[0], small) for _ in range(2))
    arguments = {
        "group_norm": (x, weight, bias, 2, 1e-5, True),
        "spatial_norm": (x, scale, shift, weight, bias, 2, 1e-5, True),
        "rms_norm": (x, weight, bias, 1e-8, True),
    }[op]
    norm = op_named(op)
    args = norm.args(*arguments)
    return record_launches(capability, lambda: norm.backends["triton"].write(out, args, "high"))


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*FAST, *OTHERS])
@pytest.mark.parametrize("op", OPS)
def test_compiles_without_spills(op, case, dtype, capability):
    found = record(op, *(FAST | OTHERS)[case], dtype, capability)
    assert len(found) == (1 if op == "rms_norm" else 3)
    for launch in found:
        compiled = launch.compile(capability)
        assert compiled.why_not_fit(capability) is None, launch.kernel.__name__
        # Below 128, four blocks of 128 threads fit into a multiprocessor's 65,536 registers.
        most = 168 if launch.kernel.__name__ == "rms_normalise" else 128
        assert compiled.registers <= most, (launch.kernel.__name__, compiled.registers)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", FAST)
@pytest.mark.parametrize("op", OPS)
def test_frames_move_16_bytes_at_a_time(op, case, dtype):
    for launch in record(op, *FAST[case], dtype):
        name = launch.kernel.__name__
        if name == "merge_statistics":
            continue
        ptx = launch.compile(90).ptx.splitlines()
        wide = [line for line in ptx if ".global" in line and (".v4.b32" in line or ".v2.b64" in line)]
        assert any("ld.global" in line for line in wide), name
        assert any("st.global" in line for line in wide) or name == "partial_statistics"
        assert all("st.global" not in line for line in ptx if "b16" in line), name


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", [LAST, FIRST])
def test_resolutions_compile_once(op, layout):
    """Sizes of 1 and multiples of 16 among them; in contiguous tensors, those that allow 16-byte accesses."""
    sizes = ((1, 16, 16), (2, 32, 48), (4, 30, 56), (4, 480, 720), (8, 16, 128))
    keys: dict[str, set[str]] = {}
    for t, h, w in sizes:
        for launch in record(op, (1 + t % 2, 128, t, h, w), (layout, layout), torch.bfloat16):
            keys.setdefault(launch.kernel.__name__, set()).add(launch.key)
    assert len(keys) == (1 if op == "rms_norm" else 3)
    assert all(len(found) == 1 for found in keys.values()), keys


@pytest.mark.parametrize("op", OPS)
def test_nothing_reads_from_the_device(op):
    """A CUDA graph can capture a call: the host looks at no value, and waits for nothing."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Watch():
        record(op, *FAST["128 channels"], torch.bfloat16)
    assert seen <= {"empty", "clone", "device"}, seen
