"""Which tile the backend `triton` takes; knows no Triton.

Nothing was measured on any GPU yet: the choice below follows from counts alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .....core.gpu_arch import KIB, arch_of
from .call import Call


@dataclass(frozen=True)
class Tile:
    """How a kernel cuts its work.

    Attributes:
        block_m: Pixels of an output frame.
        block_n: Output channels.
        block_k: Input channels of a step.
        num_warps: Warps of a program.
        num_stages: Steps that are under way at once.
        group: Output frames whose programs follow each other.
        descriptor: Load the weights through a tensor descriptor where their shape allows it.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    group: int = 4
    descriptor: bool = False


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
# Products that read their operands in shared memory and not in registers, and room for them there: steps of
# 64 channels fit beside sums of 128 x 256.
_TILE_227_KB = Tile(128, 256, 64, 8, 4)

# What is read or written element by element takes an address for each, and those fill the registers.
_PLAIN = Tile(128, 64, 16, 8, 2)
# float32 is multiplied exactly, without tensor cores.
_FLOAT32 = (Tile(128, 64, 16, 8, 3), Tile(128, 16, 32, 4, 3))
# There the first of these spills two registers of the 128 that the compiler allows itself; this one does not.
_FLOAT32_SM120 = (Tile(128, 64, 32, 8, 2), _FLOAT32[1])

# Multiprocessors of a large GPU: 108 to 170. A tile that leaves some of them without work is too large.
_PROGRAMS = 128
# Up to this share of a step's channels may be missing ones.
_MISSING = 0.2


def configurations(capability: int, dtype: torch.dtype) -> tuple[Tile, ...]:
    """Return every tile that `choose` takes by itself on a GPU of a compute capability, such as 90."""
    return tuple(dict.fromkeys((*_smooth_tiles(capability, dtype), _PLAIN)))


def choose(call: Call, capability: int, tuned: Tile | None = None) -> Tile:
    """Return how to compute a call on a GPU of this compute capability, such as 90.

    Args:
        call: The convolution.
        capability: Ten times the major number and the minor one.
        tuned: What was measured to be the fastest for calls like this one.
    """
    return tuned or _choose(call, _smooth_tiles(capability, call.x.dtype))


def _choose(call: Call, tiles: tuple[Tile, ...]) -> Tile:
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
    arch = arch_of(capability)
    if dtype == torch.float32:
        return _FLOAT32_SM120 if arch.capability == 120 else _FLOAT32
    if not arch.tma:
        return _TILES_99_KB
    wide = _TILE_227_KB if arch.shared_memory >= 227 * KIB else _TILES_99_KB[0]
    return tuple(replace(tile, descriptor=True) for tile in (wide, *_TILES_99_KB[1:]))
