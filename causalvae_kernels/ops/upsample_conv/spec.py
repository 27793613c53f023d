"""What `upsample_conv` accepts, its shapes, and the work it must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work, bytes_of, bytes_of_shape

SCALES = ((1, 2, 2), (2, 2, 2), (2, 1, 1))
TEMPORAL_MODES = ("replicate", "zeros")
SPATIAL_MODES = ("zeros", "replicate")


class UpsampleArgs(NamedTuple):
    """The arguments of a call; the public function says what they mean."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_state: Tensor | None
    scale: Sequence[int]
    first_chunk: bool
    temporal_mode: str
    spatial_mode: str

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return (
            self.x.shape[0],
            self.weight.shape[0],
            *output_size(self.x.shape, self.scale, self.first_chunk),
        )

    @property
    def out_dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.x.dtype

    @property
    def folds_time(self) -> bool:
        """Whether the kernel sees frames that are equal in pairs."""
        return folds_time(self.weight.shape, self.scale)

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        shapes, how = (self.x.shape, self.weight.shape), (self.scale, self.first_chunk)
        return Work(flops(*shapes, *how), bytes_moved(*shapes, self.x.element_size(), *how))


def state_frames(kernel_frames: int, scale: Sequence[int]) -> int:
    """Return how many frames before its chunk the op looks back at; one that was doubled stands for two."""
    return (kernel_frames - 1) // scale[0]


def output_size(shape: Sequence[int], scale: Sequence[int], first_chunk: bool) -> tuple[int, int, int]:
    """Return (T, H, W) of the output."""
    frames = scale[0] * shape[2] - (scale[0] == 2 and first_chunk)
    return frames, scale[1] * shape[3], scale[2] * shape[4]


def folds_time(weight_shape: Sequence[int], scale: Sequence[int]) -> bool:
    """Tell whether the kernel, shape (Cout, Cin, kT, 3, 3), sees frames that are equal in pairs."""
    return scale[0] == 2 and weight_shape[2] == 3


def folded_kernel(kernel_size: Sequence[int], scale: Sequence[int]) -> tuple[int, int, int]:
    """Return each output's taps: along a doubled axis a kernel of three sees two inputs."""
    time, height, width = (2 if s == 2 and k == 3 else k for k, s in zip(kernel_size, scale, strict=True))
    return time, height, width


def flops(
    shape: Sequence[int], weight_shape: Sequence[int], scale: Sequence[int], first_chunk: bool = True
) -> int:
    """Return the floating-point operations of the folded form, a multiply-add counted as two.

    Frames that are equal because each is convolved on its own (kT = 1) are computed once.
    """
    out_channels, in_channels, *kernel_size = weight_shape
    frames, height, width = output_size(shape, scale, first_chunk)
    taps = folded_kernel(kernel_size, scale)
    frames = shape[2] if kernel_size[0] == 1 else frames
    return 2 * shape[0] * out_channels * in_channels * taps[0] * taps[1] * taps[2] * frames * height * width


def bytes_moved(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    itemsize: int,
    scale: Sequence[int],
    first_chunk: bool = True,
) -> int:
    """Return the bytes of input, weight and output, each touched once."""
    out_channels, in_channels, *kernel_size = weight_shape
    batch, _, frames, rows, columns = shape
    time, height, width = output_size(shape, scale, first_chunk)
    weights = out_channels * in_channels * kernel_size[0] * kernel_size[1] * kernel_size[2]
    pixels = in_channels * frames * rows * columns + out_channels * time * height * width
    return itemsize * (batch * pixels + weights)


def takes_winograd(weight_shape: Sequence[int], scale: Sequence[int], size: Sequence[int]) -> bool:
    """Tell whether our kernels use Winograd's algorithm: where the folded form is no less work.

    Of a tile's six transformed values in each direction a folded kernel needs five. On 8x9 pixels, 512
    channels, the work is half as much, and the time a fifth (10 against 50 ms, four frames, two cores): the
    folded form makes its kernels from the weights on every call.

    Args:
        weight_shape: (Cout, Cin, kT, 3, 3).
        scale: (time, height, width).
        size: (H, W) of the input.
    """
    _, height, width = folded_kernel((1, 3, 3), scale)
    values = (height + 3) * (width + 3)
    tiles = -(-size[0] // 4) * -(-size[1] // 4)
    return weight_shape[1] >= 8 and values * tiles <= height * width * size[0] * size[1]


def moves(args: UpsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return one pass, and another where frames that are equal are computed once and copied."""
    batch, channels, frames, height, width = args.out_shape
    frame = bytes_of_shape((batch, channels, 1, height, width), args.out_dtype)
    read = bytes_of(args.x, args.weight, args.bias, args.initial_state)
    if args.weight.shape[2] == 3 or args.scale[0] == 1:
        return [Pass("upsample_conv", read, frames * frame, True)]
    computed = args.x.shape[2]
    repeated = (frames - computed) * frame
    return [
        Pass("upsample_conv", read, computed * frame, True),
        Pass("upsample_conv, equal frames", repeated, repeated),
    ]


def moves_by_phase(args: UpsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return the same for a kernel that is launched for each phase: every launch reads the frames."""
    first, *others = moves(args, out)
    phases = (4 if args.scale[1] == 2 else 1) * (2 if args.folds_time else 1)
    again = (phases - 1) * bytes_of(args.x, args.initial_state)
    return [first._replace(read=first.read + again), *others]
