"""The Triton kernels of the resampling convolutions, compiled for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from causalvae_kernels.ops.causal_conv3d.backends.triton.tiles import Tile, configurations
from causalvae_kernels.ops.downsample_conv.spec import DownsampleArgs
from causalvae_kernels.ops.upsample_conv.backends.triton.plan import plan_upsample
from causalvae_kernels.ops.upsample_conv.spec import UpsampleArgs
from tests.aot.triton_aot import CAPABILITIES, Launch, needs_compiler, record_launches

pytestmark = needs_compiler

LAST, FIRST = torch.channels_last_3d, torch.contiguous_format
TENSOR_CORES = {90: "wgmma.mma_async", 100: "tcgen05.mma"}
SPACE, BOTH, TIME = (1, 2, 2), (2, 2, 2), (2, 1, 1)
SIZE = (3, 16, 24)


def empty(args: UpsampleArgs | DownsampleArgs, memory_format: torch.memory_format) -> torch.Tensor:
    """Return memory for the result of a call."""
    return torch.empty(args.out_shape, dtype=args.out_dtype, memory_format=memory_format)


def record_upsample(
    capability: int,
    dtype: torch.dtype,
    channels: tuple[int, int],
    kernel_frames: int = 1,
    scale: Sequence[int] = SPACE,
    size: Sequence[int] = SIZE,
    memory_format: torch.memory_format = LAST,
    tile: Tile | None = None,
) -> list[Launch]:
    """Return what Triton would compile for a call with a state where it takes one."""
    x = torch.zeros(1, channels[0], *size, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.zeros(channels[1], channels[0], kernel_frames, 3, 3, dtype=dtype)
    past = x[:, :, :1] if scale[0] == 2 and kernel_frames == 3 else None
    args = UpsampleArgs(x, weight, weight[:, 0, 0, 0, 0], past, scale, False, "replicate", "zeros")

    def call() -> None:
        from causalvae_kernels.ops.upsample_conv.backends.triton.run import launches

        for launch in launches(plan_upsample(empty(args, memory_format), args), args, capability, tile):
            launch.run()

    return record_launches(capability, call)


def record_downsample(
    capability: int,
    dtype: torch.dtype,
    channels: tuple[int, int],
    compress_time: bool = True,
    size: Sequence[int] = SIZE,
    memory_format: torch.memory_format = LAST,
) -> list[Launch]:
    """Return what Triton would compile for a call."""
    x = torch.zeros(1, channels[0], *size, dtype=dtype).contiguous(memory_format=memory_format)
    weight = torch.zeros(channels[1], channels[0], 1, 3, 3, dtype=dtype)
    args = DownsampleArgs(x, weight, weight[:, 0, 0, 0, 0], compress_time)

    def call() -> None:
        from causalvae_kernels.ops.downsample_conv.backends.triton.run import launches

        for launch in launches(empty(args, memory_format), args, capability):
            launch.run()

    return record_launches(capability, call)


# The tile with the most registers, and that for few channels.
TILES = [
    pytest.param(
        capability, configurations(capability, torch.bfloat16)[number], id=f"sm_{capability}-{number}"
    )
    for capability in CAPABILITIES
    for number in (0, 3)
]


@pytest.mark.parametrize(("capability", "tile"), TILES)
def test_every_second_pixel_is_written(capability, tile):
    """The tail of the loop and the epilogue differ from those of a plain convolution: folds, and windows."""
    channels = (2 * tile.block_k, 3 if tile.block_n == 16 else 2 * tile.block_n)
    fold, *phases = record_upsample(capability, torch.bfloat16, channels, 3, BOTH, tile=tile)
    assert fold.kernel.__name__ == "fold_weights" and len(phases) == 8
    assert len({phase.key for phase in phases}) == 1  # all phases are one kernel
    compiled = phases[0].compile(capability)
    assert phases[0].constants["OUT_WINDOW"] and compiled.why_not_fit(capability) is None
    assert TENSOR_CORES.get(capability, "mma.sync") in compiled.ptx
    assert "cp.async.cg.shared.global" in compiled.ptx  # 16 bytes at a time, ahead of their use
    if channels[1] > 3:
        stores = [line for line in compiled.ptx.splitlines() if "st.global" in line]
        assert stores and all(".v4.b32" in line for line in stores)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("memory_format", [LAST, FIRST], ids=str)
def test_folds_and_averages(memory_format, capability):
    """Neither spills; pixels are averaged 16 bytes at a time."""
    dtype = torch.bfloat16 if memory_format == LAST else torch.float32
    kernel_frames, scale = (3, BOTH) if memory_format == LAST else (1, SPACE)
    fold, *_ = record_upsample(capability, dtype, (64, 128), kernel_frames, scale)
    assert fold.compile(capability).why_not_fit(capability) is None
    average, _ = record_downsample(capability, dtype, (64, 128), memory_format=memory_format)
    compiled = average.compile(capability)
    assert compiled.why_not_fit(capability) is None and compiled.registers <= 128
    lines = [line for line in compiled.ptx.splitlines() if "ld.global" in line or "st.global" in line]
    assert lines and all(".v4.b32" in line for line in lines)


OTHERS = {
    "contiguous": {"memory_format": FIRST},
    "odd channels": {"channels": (67, 131)},
    "to rgb": {"channels": (64, 3)},
    "three frames": {"kernel_frames": 3},
    "time": {"kernel_frames": 3, "scale": TIME},
    "float32": {"dtype": torch.float32},
    "float32, time and space": {"dtype": torch.float32, "kernel_frames": 3, "scale": BOTH},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_what_is_chosen_for_other_calls(change):
    """For sm_80, whose products take the most registers."""
    given = {"dtype": torch.bfloat16, "channels": (64, 128)} | change
    *_, last = record_upsample(80, **given)
    assert last.compile(80).why_not_fit(80) is None


@pytest.mark.parametrize("capability", [80, 90])
def test_stride_two_behind_zeros(capability):
    *_, conv = record_downsample(capability, torch.bfloat16, (64, 128))
    compiled = conv.compile(capability)
    assert compiled.why_not_fit(capability) is None
    assert TENSOR_CORES.get(capability, "mma.sync") in compiled.ptx
    assert not conv.constants["OUT_WINDOW"] and conv.constants["ALIGNED"]


def test_no_resolution_is_compiled_anew():
    """Sizes of 1 and multiples of 16 among them: those are what Triton likes to specialise."""
    tile = configurations(90, torch.bfloat16)[2]
    sizes = ((2, 2, 2), (3, 16, 16), (4, 17, 30), (5, 30, 45), (16, 32, 64))
    for scale, kernel_frames, kernels in ((SPACE, 1, 2), (BOTH, 3, 2), (TIME, 3, 2)):
        keys = {
            launch.key
            for size in sizes
            for launch in record_upsample(90, torch.bfloat16, (64, 64), kernel_frames, scale, size, tile=tile)
        }
        assert len(keys) == kernels, keys


def test_nothing_reads_from_the_device():
    """A CUDA graph can capture a call: no result of a kernel is looked at on the host."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Watch():
        record_upsample(90, torch.bfloat16, (64, 64), 3, BOTH)
        record_downsample(90, torch.bfloat16, (64, 64))
    assert not seen & {"item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal"}, seen
