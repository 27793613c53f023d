"""How kernels walk the pixels and channels of (B, C, T, H, W) tensors of any strides; knows no Triton.

Axes of pixels that touch in every tensor are one long axis. A program takes a tile of channels by pixels of
the innermost axis, and the others by number, so that nothing is divided per element and nothing that is
compiled depends on T, H or W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .dry_run import address

# Programs, channels and pixels of an axis are counted in 32 bits, with room for a tile.
LIMIT = 2**31 - 2**16
ACCESS_BYTES = 16
# Along what a tensor is accessed 16 bytes at a time.
CHANNELS, PIXELS, NEITHER = "channels", "pixels", "neither"


@dataclass(frozen=True)
class PixelWalk:
    """Tensors of one shape, their pixels along four axes, the innermost first.

    Attributes:
        tensors: What is walked.
        sizes: Of the four axes.
        strides: Of each tensor along them; 0 where the size is 1.
    """

    tensors: tuple[Tensor, ...]
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, *tensors: Tensor, batch_apart: bool = False, merge: bool = True) -> PixelWalk:
        """Return the walk of tensors of one shape.

        Args:
            *tensors: Shape (B, C, T, H, W), any strides.
            batch_apart: The last axis is the batch, and nothing else.
            merge: Make one axis of those that touch; without it they are W, H, T and B.
        """
        axes: list[tuple[int, tuple[int, ...]]] = []
        for dim in (4, 3, 2) if batch_apart or not merge else (4, 3, 2, 0):
            axis = _axis(tensors, dim)
            if merge and axis[0] == 1:
                continue
            if merge and axes and _touch(axes[-1], axis):
                axes[-1] = (axes[-1][0] * axis[0], axes[-1][1])
            else:
                axes.append(axis)
        none = (1, (0,) * len(tensors))
        if batch_apart or not merge:
            axes += [none] * (3 - len(axes)) + [_axis(tensors, 0)]
        axes += [none] * (4 - len(axes))
        return cls(
            tensors,
            tuple(size for size, _ in axes),
            tuple(tuple(s[i] for _, s in axes) for i in range(len(tensors))),
        )

    @property
    def channels(self) -> int:
        """C."""
        return self.tensors[0].shape[1]

    def inner(self, index: int) -> str:
        """Return along what a tensor is accessed 16 bytes at a time: CHANNELS, PIXELS or NEITHER."""
        tensor, (first, *others) = self.tensors[index], self.strides[index]
        vector, step = ACCESS_BYTES // tensor.element_size(), tensor.stride(1) if self.channels > 1 else 0
        if address(tensor) % ACCESS_BYTES:
            return NEITHER
        if step == 1 and not any(n % vector for n in (self.channels, first, *others)):
            return CHANNELS
        if first == 1 and not any(n % vector for n in (self.sizes[0], step, *others)):
            return PIXELS
        return NEITHER

    def neighbours(self, index: int) -> str:
        """Return along what a tensor's elements are neighbours in memory, aligned or not; CHANNELS if any."""
        last = self.channels > 1 and self.tensors[index].stride(1) == 1
        return CHANNELS if last or self.strides[index][0] != 1 else PIXELS

    def numbers(self) -> dict[str, int]:
        """Return the sizes by the names that kernels give them."""
        sizes = {f"size_{i}": self.sizes[i] for i in (1, 2, 3)}
        return {"channels": self.channels, "pixels": self.sizes[0], **sizes}

    def steps(self, index: int, name: str) -> dict[str, int]:
        """Return a tensor's strides by the names that kernels give them."""
        strides = {f"{name}_{i}": s for i, s in enumerate(self.strides[index])}
        return {f"{name}_c": self.tensors[index].stride(1), **strides}

    def tile(self, items: int) -> tuple[int, int]:
        """Return how many channels and pixels a program takes, powers of two, `items` together.

        Channels are those of `covering_block` where they are neighbours in the first tensor and in the last,
        4 where pixels are, and 32 where one changes the layout of the other.
        """
        kinds = {self.neighbours(0), self.neighbours(len(self.tensors) - 1)}
        most = power_of_two(self.channels)
        if len(kinds) == 2:
            block = min(most, 32)
        else:
            block = covering_block(self.channels) if kinds == {CHANNELS} else min(most, 4)
        return block, items // block

    def programs(self, block_c: int, block_p: int) -> int:
        """Return how many tiles there are."""
        tiles = -(-self.channels // block_c) * -(-self.sizes[0] // block_p)
        return tiles * self.sizes[1] * self.sizes[2] * self.sizes[3]


def _axis(tensors: Sequence[Tensor], dim: int) -> tuple[int, tuple[int, ...]]:
    size = tensors[0].shape[dim]
    return size, tuple(t.stride(dim) if size > 1 else 0 for t in tensors)


def _touch(inner: tuple[int, tuple[int, ...]], outer: tuple[int, tuple[int, ...]]) -> bool:
    return inner[0] * outer[0] <= LIMIT and tuple(inner[0] * s for s in inner[1]) == outer[1]


def covering_block(count: int, most: int = 256) -> int:
    """Return the widest power of two up to `most` whose blocks leave at most a fifth of their lanes idle.

    160 channels go by 64, 96 by 32; a number that none of 32 and more covers so well goes in one block, or
    by 32.
    """
    blocks = [b for b in (32, 64, 128, 256) if b <= most and -(-count // b) * b * 4 <= count * 5]
    return max(blocks, default=min(power_of_two(count), 32))


def power_of_two(count: int) -> int:
    """Return the least power of two that is not below `count`."""
    return 1 << (count - 1).bit_length()
