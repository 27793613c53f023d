"""Which convolutions `tune` measures: one for each shape class that the VAEs need and a CPU can time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..ops.causal_conv3d.measurements import CHANNELS, shape_classes
from ..ops.causal_conv3d.spec import flops, output_size

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KERNELS = ("3x3x3", "1x3x3", "1x1x1", "3x1x1")

# Of an output frame, one for each class of pixels: a bit off the powers, so that tiles do not divide them.
_SIZES = ((4, 4), (8, 9), (15, 18), (30, 35), (60, 70), (120, 140))
_FRAMES = (1, 4)
_FEW = 3

_EQUAL = tuple((c, c) for c in CHANNELS)
_NEIGHBOURS = tuple(zip(CHANNELS, CHANNELS[1:], strict=False))
_SHORTCUTS = (*_NEIGHBOURS, *((b, a) for a, b in _NEIGHBOURS))
_ENDS = (16, 64, 128, 512)
_CHANNELS = (
    *_EQUAL,
    *_SHORTCUTS,
    *((_FEW, c) for c in _ENDS),
    *((c, _FEW) for c in _ENDS),
)
_FEWER_CHANNELS = (*_EQUAL, (_FEW, 128), (128, _FEW))
# From latents to the widest activation and back, and from patches: the first and last convolutions.
_JUMPS = ((16, 512), (32, 512), (64, 512), (128, 512), (16, 128), (16, 256))
_LATENTS = (*_JUMPS, *((b, a) for a, b in _JUMPS))

_Sizes = tuple[int, int, int]
# (kernel, stride, (Cin, Cout)): the full grid for the kernels that nearly all of a VAE's time goes to.
_CONVOLUTIONS: tuple[tuple[_Sizes, _Sizes, tuple[tuple[int, int], ...]], ...] = (
    ((3, 3, 3), (1, 1, 1), (*_CHANNELS, *_LATENTS)),
    ((1, 3, 3), (1, 1, 1), (*_CHANNELS, (16, 512), (512, 16))),
    ((1, 1, 1), (1, 1, 1), (*_FEWER_CHANNELS, *_SHORTCUTS)),
    ((3, 1, 1), (1, 1, 1), _FEWER_CHANNELS),
    ((1, 3, 3), (1, 2, 2), _FEWER_CHANNELS),
    ((3, 3, 3), (1, 2, 2), _EQUAL),
    ((3, 3, 3), (2, 2, 2), _EQUAL),
    ((3, 1, 1), (2, 1, 1), _EQUAL),
)


@dataclass(frozen=True)
class Cell:
    """One convolution to measure, contiguous, with the op's default modes.

    Attributes:
        dtype: Of all tensors.
        shape: (B, Cin, T, H, W) of the input.
        out_channels: Cout.
        kernel_size: (kT, kH, kW).
        stride: (time, height, width).
    """

    dtype: torch.dtype
    shape: tuple[int, int, int, int, int]
    out_channels: int
    kernel_size: _Sizes = (3, 3, 3)
    stride: _Sizes = (1, 1, 1)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Return (Cout, Cin, kT, kH, kW)."""
        return (self.out_channels, self.shape[1], *self.kernel_size)

    @property
    def shape_class(self) -> str:
        """The class that the measurement will speak for."""
        return shape_classes(self.dtype, self.shape, self.weight_shape, self.stride)[0]

    @property
    def shapes(self) -> str:
        """Input and output, for the record: "1x3x4x60x70 -> 1x128x4x60x70"."""
        size = output_size(self.shape, self.kernel_size, self.stride, (1, 1, 1), "replicate", "zeros")
        return " -> ".join("x".join(map(str, s)) for s in (self.shape, (1, self.out_channels, *size)))

    @property
    def gflop(self) -> float:
        """Work of the direct form in units of 1e9 operations."""
        return flops(self.shape, self.weight_shape, self.stride) / 1e9


def cells(
    dtypes: Sequence[torch.dtype] = DTYPES, kernels: Sequence[str] = KERNELS, *, max_gflop: float = 16.0
) -> list[Cell]:
    """Return what to measure.

    Args:
        dtypes: Some of `DTYPES`.
        kernels: Some of `KERNELS`.
        max_gflop: Cells with more work than this, in the direct form, are left out.
    """
    grid = (
        Cell(
            dtype,
            (1, channels_in, frames, height * stride[1], width * stride[2]),
            channels_out,
            kernel_size,
            stride,
        )
        for dtype in dtypes
        for kernel_size, stride, channels in _CONVOLUTIONS
        if "x".join(map(str, kernel_size)) in kernels
        for channels_in, channels_out in channels
        for frames in _FRAMES
        for height, width in _SIZES
    )
    return [cell for cell in grid if cell.gflop <= max_gflop]
