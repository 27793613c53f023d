"""The Triton convolutions, compiled for GPUs that are not there: resources, instructions, variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels.ops.causal_conv3d.backends.triton.call import Call, make_call
from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile, choose, configurations
from causalvae_kernels.ops.causal_conv3d.spec import ConvArgs
from tests.aot.triton_aot import CAPABILITIES, Launch, needs_compiler, record_launches

pytestmark = needs_compiler

HALVES = (torch.bfloat16, torch.float16)
TENSOR_CORES = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
TILES = [
    pytest.param(capability, dtype, tile, id=f"sm_{capability}-{str(dtype)[6:]}-{number}")
    for capability in CAPABILITIES
    for dtype in (torch.float32, *HALVES)
    for number, tile in enumerate(configurations(capability, dtype))
]


def conv_call(
    dtype: torch.dtype,
    in_channels: int,
    out_channels: int,
    *,
    shape: tuple[int, int, int] = (4, 8, 8),
    kernel: tuple[int, int, int] = (3, 3, 3),
    last: bool = True,
    state: bool = True,
    spatial_mode: str = "zeros",
) -> Call:
    """Return a call with bias and residual, everything channels last or nothing."""

    def tensor(channels: int, frames: int) -> Tensor:
        x = torch.zeros(1, channels, frames, *shape[1:], dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last_3d) if last else x

    args = ConvArgs(
        tensor(in_channels, shape[0]),
        torch.zeros(out_channels, in_channels, *kernel, dtype=dtype),
        torch.zeros(out_channels, dtype=dtype),
        tensor(in_channels, kernel[0] - 1) if state and kernel[0] > 1 else None,
        tensor(out_channels, shape[0]),
        temporal_mode="zeros",
        spatial_mode=spatial_mode,
    )
    return make_call(args)


def record(capability: int, call: Call, tile: Tile) -> list[Launch]:
    """Return what Triton would compile for a tile."""
    from causalvae_kernels.ops.causal_conv3d.backends.triton.run import run

    return record_launches(capability, lambda: run(call, tile))


def call_for(tile: Tile, dtype: torch.dtype, capability: int) -> Call:
    """Return a call of the kind that `choose` gives this tile to; the last tile is for awkward ones."""
    if tile == configurations(capability, dtype)[-1]:
        return conv_call(dtype, 67, 131, last=False, spatial_mode="reflect")
    return conv_call(dtype, 2 * tile.block_k, 3 if tile.block_n == 16 else 2 * tile.block_n)


@pytest.mark.parametrize(("capability", "dtype", "tile"), TILES)
def test_every_configuration(capability, dtype, tile):
    (launch,) = record(capability, call_for(tile, dtype, capability), tile)
    compiled = launch.compile(capability)
    assert compiled.why_not_fit(capability) is None
    if dtype == torch.float32:  # full products: no tensor cores
        assert not any(word in compiled.ptx for word in ("mma.sync", "wgmma.mma", "tcgen05.mma"))
        assert "fma.rn.f32" in compiled.ptx
        return
    assert TENSOR_CORES.get(capability, "mma.sync") in compiled.ptx
    if launch.constants["ALIGNED"]:
        assert "cp.async.cg.shared.global" in compiled.ptx  # 16 bytes at a time, ahead of their use
    assert ("cp.async.bulk.tensor" in compiled.ptx) is launch.constants["DESCRIPTOR"]
    assert launch.constants["DESCRIPTOR"] is (capability >= 90 and launch.constants["ALIGNED"])


AWKWARD = {
    "contiguous, no state": {"last": False, "state": False, "spatial_mode": "replicate"},
    "contiguous": {"last": False},
    "odd channels": {"in_channels": 67, "out_channels": 131},
    "odd channels out": {"in_channels": 64, "out_channels": 131},
    "rgb": {"in_channels": 3, "out_channels": 128, "state": False},
    "three channels out, contiguous weights": {"out_channels": 3},
    "three frames": {"kernel": (3, 1, 1)},
    "channels that do not fill a step": {"in_channels": 72},
}


@pytest.mark.parametrize("change", AWKWARD.values(), ids=AWKWARD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_chosen_for_awkward_calls(change, dtype):
    call = conv_call(dtype, **({"in_channels": 64, "out_channels": 128} | change))
    for capability in (80, 90):
        (launch,) = record(capability, call, choose(call, capability))
        assert launch.compile(capability).why_not_fit(capability) is None


RESOLUTIONS = (
    (1, 1, 1),
    (1, 16, 16),
    (2, 1, 17),
    (2, 17, 1),
    (3, 16, 33),
    (4, 30, 45),
    (5, 60, 90),
    (9, 32, 64),
    (16, 16, 16),
    (17, 9, 11),
)


def test_no_resolution_is_compiled_anew():
    """Sizes of 1 and multiples of 16 among them: those are what Triton likes to specialise."""
    tile = configurations(90, torch.bfloat16)[1]
    calls = (conv_call(torch.bfloat16, 64, 64, shape=shape) for shape in RESOLUTIONS)
    assert len({launch.key for call in calls for launch in record(90, call, tile)}) == 1


def test_channels_are_compiled_anew_only_with_their_alignment():
    tile = configurations(90, torch.bfloat16)[-1]
    keys = {
        record(90, conv_call(torch.bfloat16, cin, cout), tile)[0].key
        for cin, cout in ((8, 16), (16, 8), (24, 40), (136, 1000))
    }
    assert len(keys) == 1


def test_nothing_reads_from_the_device():
    """A CUDA graph can capture a call: no result of a kernel is looked at on the host."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    call = conv_call(torch.bfloat16, 64, 64, shape=(5, 6, 6))
    with Watch():
        record(90, call, configurations(90, torch.bfloat16)[1])
    assert "permute" in seen
    assert seen <= {"permute", "clone", "view"}, seen
