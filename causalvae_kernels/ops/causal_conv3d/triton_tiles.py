"""Which kernel and which tiles the backend `triton` takes; knows no Triton.

Nothing was measured on any GPU yet: the choice below follows from counts alone, and Winograd's algorithm,
which the counts put behind the direct form (docs/triton.md), is taken only where it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .triton_call import Call

DIRECT, WINOGRAD = "direct", "winograd"


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work.

    Attributes:
        block_m: Pixels of an output frame, of two frames in Winograd's form.
        block_n: Output channels.
        block_k: Input channels of a step.
        num_warps: Warps of a program.
        num_stages: Steps that are under way at once.
        group: Output frames, or pairs of them, whose programs follow each other.
        descriptor: Load the weights through a tensor descriptor where their shape allows it (the direct
            kernel, from compute capability 9.0 on).
        algorithm: "direct" or "winograd".
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 4
    descriptor: bool = False
    algorithm: str = DIRECT


@dataclass(frozen=True)
class Plan:
    """How a call is computed.

    Attributes:
        direct: The tile of the direct kernel.
        winograd: The tile of Winograd's, or None; the direct kernel then computes an odd last frame, and
            everything if float16 does not hold the transformed values.
    """

    direct: Tile
    winograd: Tile | None = None


# From 128 to 256 output channels a step's FLOPs grow twofold and its bytes by a half; 128 x 256 sums in
# float32 are half of the registers of 8 warps. Narrow tiles are for what wide ones would compute in vain, and
# for work that is too little for wide ones.
_TILES_99_KB = (
    Tile(128, 256, 32, 8, 5),
    Tile(128, 128, 64, 8, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(128, 16, 64, 4, 4),
    Tile(128, 128, 32, 8, 4),
    Tile(128, 128, 16, 8, 4),
)
_SM120 = tuple(replace(t, descriptor=True) for t in _TILES_99_KB)
# 227 KB of shared memory, and products that read their operands there and not from registers: here steps of
# 64 channels fit beside sums of 128 x 256.
_HOPPER = (Tile(128, 256, 64, 8, 4, descriptor=True), *_SM120[1:])
_TILES = {80: _TILES_99_KB, 86: _TILES_99_KB, 89: _TILES_99_KB, 90: _HOPPER, 100: _HOPPER, 120: _SM120}

# What is read or written element by element takes an address for each, and those fill the registers.
_PLAIN = Tile(128, 64, 16, 8, 2)
# float32 is multiplied exactly, without tensor cores.
_FLOAT32 = (Tile(128, 64, 16, 8, 3), Tile(128, 16, 32, 4, 3))
# There the first of these spills two registers of the 128 that the compiler allows itself; this one does not.
_FLOAT32_SM120 = (Tile(128, 64, 32, 8, 2), _FLOAT32[1])

# Four sums of 128 x 64 are as many registers as one of 128 x 256. Where the product is mma.sync, steps of 32
# channels spill.
_WINOGRAD = Tile(128, 64, 32, 8, 3, group=2, algorithm=WINOGRAD)
_WINOGRAD_SMALL = Tile(128, 64, 16, 8, 4, group=2, algorithm=WINOGRAD)

# Multiprocessors of a large GPU: 108 to 170. A tile that leaves some of them without work is too large.
_PROGRAMS = 128
# Up to this share of a step's channels may be missing ones.
_MISSING = 0.2


def capability_of(device: torch.device) -> int:
    """Return 90 for compute capability 9.0; the interpreter runs what a Hopper GPU would."""
    major, minor = (9, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    return 10 * major + minor


def configurations(capability: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Return every tile that `choose` takes by itself on a GPU of a compute capability, such as 90."""
    return tuple(dict.fromkeys((*_smooth_tiles(capability, dtype), _PLAIN)))


def winograd_tile(capability: int) -> Tile:
    """Return a tile of Winograd's form that fits a compute capability."""
    return _WINOGRAD if _nearest(capability) in (90, 100) else _WINOGRAD_SMALL


def choose(call: Call, capability: int, tuned: Tile | None = None) -> Plan:
    """Return how to compute a call on a GPU of this compute capability, such as 90.

    Args:
        call: The convolution.
        capability: Ten times the major number and the minor one.
        tuned: What was measured to be the fastest for calls like this one.
    """
    if tuned is not None and tuned.algorithm == DIRECT:
        return Plan(tuned)
    direct = _choose_direct(call, _smooth_tiles(capability, call.x.dtype))
    if tuned is not None and why_no_winograd(call) is None:
        return Plan(direct, tuned)
    return Plan(direct)


def why_no_winograd(call: Call) -> str | None:
    """Return why Winograd's form over time cannot compute a call, or None."""
    kernel, steps = tuple(call.weight.shape[2:]), (*call.stride, *call.dilation)
    if call.x.dtype not in (torch.bfloat16, torch.float16):
        return (
            f"the dtype is {call.x.dtype}, the form over time stores float16 and knows bfloat16 and float16"
        )
    if kernel[0] != 3 or max(steps) > 1:
        return (
            f"kernel {kernel}, stride {tuple(call.stride)}, dilation {tuple(call.dilation)}: the form over "
            "time takes kernels of three frames, strides and dilations of 1"
        )
    if not call.smooth:
        return "the tensors are not channels last with multiples of 8 channels"
    if call.out_window:
        return "the output is a window into larger frames"
    if call.out.shape[2] < 2:
        return "there is one output frame, and the form over time computes pairs"
    if call.past is not None and any(
        call.past.stride(d) != call.x.stride(d) for d in (1, 3, 4) if call.x.shape[d] > 1
    ):
        return "the state has other strides within a frame than the input"
    return None


def _choose_direct(call: Call, tiles: tuple[Tile, ...]) -> Tile:
    batch, out_channels, frames, height, width = call.out.shape

    def programs(tile: Tile) -> int:
        return batch * frames * -(-height * width // tile.block_m) * -(-out_channels // tile.block_n)

    def flops_per_element(tile: Tile) -> float:
        """Multiply-adds that are wanted, for each element that a step loads."""
        useful = out_channels / (-(-out_channels // tile.block_n) * tile.block_n)
        return useful * tile.block_m * tile.block_n / (tile.block_m + tile.block_n)

    few = [t for t in tiles if t.block_n == 16]
    if out_channels <= 16 and call.aligned:
        return few[0]
    if not call.smooth:
        return _PLAIN
    tiles = [t for t in tiles if t not in few]
    shallow = min(t.block_k for t in tiles)
    tiles = [t for t in tiles if t.block_k == shallow or _fills(t.block_k, call.x.shape[1])]
    busy = [t for t in tiles if programs(t) >= _PROGRAMS]
    if busy:
        return max(busy, key=lambda t: (flops_per_element(t), t.block_k))
    return max(tiles, key=lambda t: (programs(t), t.block_k))


def _fills(depth: int, channels: int) -> bool:
    """Tell whether the channels nearly fill steps of this many."""
    return channels >= (1 - _MISSING) * (-(-channels // depth) * depth)


def _smooth_tiles(capability: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    nearest = _nearest(capability)
    if dtype == torch.float32:
        return _FLOAT32_SM120 if nearest == 120 else _FLOAT32
    return _TILES[nearest]


def _nearest(capability: int) -> int:
    """Return the newest capability that is known and not newer than this one."""
    return max(c for c in _TILES if c <= max(capability, 80))
