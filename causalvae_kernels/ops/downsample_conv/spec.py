"""The shapes of `downsample_conv`, and the work it must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
