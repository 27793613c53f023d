"""The shapes of `downsample_conv`, and the work it must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.traffic import Pass, Work, bytes_of, bytes_of_shape

STRIDE = (1, 2, 2)
HALO = (0, 1, 0, 1)  # zeros: top, bottom, left, right


class DownsampleArgs(NamedTuple):
    """The arguments of a call; the public function says what they mean."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    compress_time: bool

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.x.shape[0], self.weight.shape[0], *output_size(self.x.shape, self.compress_time)

    @property
    def out_dtype(self) -> torch.dtype:
        """Dtype of the result."""
        return self.x.dtype

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        shapes = (self.x.shape, self.weight.shape)
        moved = bytes_moved(*shapes, self.x.element_size(), self.compress_time)
        return Work(flops(*shapes, self.compress_time), moved)


def output_size(shape: Sequence[int], compress_time: bool) -> tuple[int, int, int]:
    """Return (T, H, W) of the output."""
    return (shape[2] + 1) // 2 if compress_time else shape[2], shape[3] // 2, shape[4] // 2


def flops(shape: Sequence[int], weight_shape: Sequence[int], compress_time: bool = False) -> int:
    """Return the floating-point operations of the convolution, a multiply-add counted as two."""
    frames, height, width = output_size(shape, compress_time)
    return 2 * shape[0] * weight_shape[0] * weight_shape[1] * 9 * frames * height * width


def bytes_moved(
    shape: Sequence[int], weight_shape: Sequence[int], itemsize: int, compress_time: bool = False
) -> int:
    """Return the bytes of input, weight and output, each touched once."""
    out_channels, in_channels = weight_shape[:2]
    frames, height, width = output_size(shape, compress_time)
    pixels = in_channels * shape[2] * shape[3] * shape[4] + out_channels * frames * height * width
    return itemsize * (shape[0] * pixels + 9 * out_channels * in_channels)


def moves(args: DownsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return one pass, and before it the two that average pairs of frames."""
    x, frames = args.x, args.out_shape[2]
    written = bytes_of_shape(args.out_shape, args.out_dtype)
    passes, read = [], bytes_of(x)
    if frames < x.shape[2]:
        frame, lone, pairs = read // x.shape[2], x.shape[2] % 2, x.shape[2] // 2
        # Halves of the first frames are written, those of the second are added; a lone first frame is copied.
        passes.append(
            Pass("downsample_conv, averages", frame * (lone + 3 * pairs), frame * (lone + 2 * pairs))
        )
        read = frame * frames
    return [*passes, Pass("downsample_conv", read + bytes_of(args.weight, args.bias), written, True)]


def moves_averaging_once(args: DownsampleArgs, out: Tensor | None) -> list[Pass]:
    """Return the same for a kernel that averages pairs in one pass, each frame read once."""
    *averages, convolution = moves(args, out)
    written = convolution.read - bytes_of(args.weight, args.bias)
    return [*(p._replace(read=bytes_of(args.x), written=written) for p in averages), convolution]
