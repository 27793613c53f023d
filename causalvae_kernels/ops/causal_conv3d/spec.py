"""What `causal_conv3d` accepts, its shapes, and the work it must do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.layout import is_channels_last_3d
from ...core.traffic import Pass, Work, bytes_of, bytes_of_shape
from ..causal_pad3d.spec import PadArgs
from ..causal_pad3d.spec import moves as padding_moves

TEMPORAL_MODES = ("replicate", "zeros", "valid")
SPATIAL_MODES = ("zeros", "replicate", "reflect", "valid")


class Paddings(NamedTuple):
    """How a convolution with these modes is padded.

    Attributes:
        causal: Frames in front.
        explicit: Pixels that must be written around the frames: (top, bottom, left, right).
        explicit_mode: What is written there.
        implicit: (height, width) of zeros that the framework's convolution adds by itself.
    """

    causal: int
    explicit: tuple[int, int, int, int]
    explicit_mode: str
    implicit: tuple[int, int]

    @property
    def copies(self) -> bool:
        """Whether anything must be written before the framework's convolution can run."""
        return self.causal > 0 or any(self.explicit)

    @property
    def sides(self) -> tuple[int, int, int, int]:
        """Pixels around the frames, however they come there: (top, bottom, left, right)."""
        top, bottom, left, right = self.explicit
        height, width = self.implicit
        return top + height, bottom + height, left + width, right + width


def paddings(
    kernel_size: Sequence[int], dilation: Sequence[int], temporal_mode: str, spatial_mode: str
) -> Paddings:
    """Work out the padding; kernel heights and widths are odd, so space is padded evenly."""
    causal = 0 if temporal_mode == "valid" else dilation[0] * (kernel_size[0] - 1)
    height = dilation[1] * (kernel_size[1] - 1) // 2
    width = dilation[2] * (kernel_size[2] - 1) // 2
    if spatial_mode == "zeros":
        return Paddings(causal, (0, 0, 0, 0), "zeros", (height, width))
    if spatial_mode == "valid":
        return Paddings(causal, (0, 0, 0, 0), "zeros", (0, 0))
    return Paddings(causal, (height, height, width, width), spatial_mode, (0, 0))


def output_size(
    shape: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> tuple[int, int, int]:
    """Return (T, H, W) of the output; a number below one means that the input is too small."""
    causal, (top, _, left, _), _, implicit = paddings(kernel_size, dilation, temporal_mode, spatial_mode)
    return (
        (shape[2] + causal - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1,
        (shape[3] + 2 * (top + implicit[0]) - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1,
        (shape[4] + 2 * (left + implicit[1]) - dilation[2] * (kernel_size[2] - 1) - 1) // stride[2] + 1,
    )


class ConvArgs(NamedTuple):
    """The arguments of `causal_conv3d`, as the public function describes them."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    initial_state: Tensor | None = None
    residual: Tensor | None = None
    stride: Sequence[int] = (1, 1, 1)
    dilation: Sequence[int] = (1, 1, 1)
    temporal_mode: str = "replicate"
    spatial_mode: str = "zeros"

    @property
    def pad(self) -> Paddings:
        """How it is padded."""
        return paddings(self.weight.shape[2:], self.dilation, self.temporal_mode, self.spatial_mode)

    @property
    def size(self) -> tuple[int, int, int]:
        """(T, H, W) of the output."""
        options = (self.stride, self.dilation, self.temporal_mode, self.spatial_mode)
        return output_size(self.x.shape, self.weight.shape[2:], *options)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Of the output."""
        return (self.x.shape[0], self.weight.shape[0], *self.size)

    @property
    def out_dtype(self) -> torch.dtype:
        """Of the output."""
        return self.x.dtype

    def work(self, out: Tensor | None) -> Work:
        """Return what must be computed and moved; `out` is the destination, if there is one."""
        options = (self.stride, self.dilation, self.temporal_mode, self.spatial_mode)
        shapes = (self.x.shape, self.weight.shape)
        return Work(flops(*shapes, *options), bytes_moved(*shapes, self.x.element_size(), *options))


def flops(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1, 1),
    dilation: Sequence[int] = (1, 1, 1),
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
) -> int:
    """Return the floating-point operations of the direct form, a multiply-add counted as two."""
    out_channels, in_channels, *kernel_size = weight_shape
    time, height, width = output_size(shape, kernel_size, stride, dilation, temporal_mode, spatial_mode)
    taps = kernel_size[0] * kernel_size[1] * kernel_size[2]
    return 2 * shape[0] * out_channels * in_channels * taps * time * height * width


def bytes_moved(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    itemsize: int,
    stride: Sequence[int] = (1, 1, 1),
    dilation: Sequence[int] = (1, 1, 1),
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
) -> int:
    """Return the bytes of input, weight and output, each touched once."""
    out_channels, in_channels, *kernel_size = weight_shape
    time, height, width = output_size(shape, kernel_size, stride, dilation, temporal_mode, spatial_mode)
    batch, _, frames, rows, columns = shape
    weights = out_channels * in_channels * kernel_size[0] * kernel_size[1] * kernel_size[2]
    pixels = in_channels * frames * rows * columns + out_channels * time * height * width
    return itemsize * (batch * pixels + weights)


def takes_winograd(
    weight_shape: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int]
) -> bool:
    """Tell whether our kernels compute a convolution by Winograd's algorithm, F(2x4x4, 3x3x3) or F(4x4, 3x3).

    Args:
        weight_shape: (Cout, Cin, kT, kH, kW).
        stride: (time, height, width).
        dilation: (time, height, width).
        size: (T, H, W) of the output.
    """
    _, in_channels, *kernel_size = weight_shape
    if tuple(kernel_size) not in ((3, 3, 3), (1, 3, 3)) or max(*stride, *dilation) > 1:
        return False
    # From few channels the products save less than the transforms cost (to few it pays: 128 -> 3 takes 28 ms
    # instead of 82 on 9x96x144); with few pixels most of a tile is wasted.
    tiles = -(-size[1] // 4) * -(-size[2] // 4)
    return in_channels >= 8 and 36 * tiles <= 9 * size[1] * size[2] / 2


def takes_tiles(dtype: torch.dtype, weight_shape: Sequence[int]) -> bool:
    """Tell whether a convolution can be multiplied on the matrix tiles of a processor that has them.

    They multiply bfloat16, 32 channels at a time, those of all columns of the kernel where they fit: of
    fewer than 8 most would be zeros.

    Args:
        dtype: Of all tensors.
        weight_shape: (Cout, Cin, kT, kH, kW).
    """
    _, channels, _, _, columns = weight_shape
    return dtype == torch.bfloat16 and (channels >= 8 or 8 <= channels * columns <= 32)


class ErrorFactor(NamedTuple):
    """How many times the reference's error the tier `high` allows.

    Attributes:
        norm: Over the norm of the difference.
        worst: At the worst element.
    """

    norm: float
    worst: float


# The largest output error of a 4x4 tile over the root mean square of the tile, from the matrices of F(4, 3):
# v[i] = sum over p of A[p, i]^2 |B[p]|^2 |G[p]|^2 is 24.5, 6.8, 6.4, 19.6, and max(v) / mean(v) = 1.71.
WINOGRAD_CORNER = 1.71


def error_factor(dtype: torch.dtype, winograd: bool = False) -> ErrorFactor:
    """Return how many times the reference's error the tier `high` allows.

    Our direct kernel sums in parts, with no more error than the reference's blocked ones (measured: up to
    1.24 times norm-wise, 1.43 at the worst element, 8 to 300 channels). Winograd's transforms cost up to 5.9
    times norm-wise (8 to 512 channels), 9e-7 relative; a direct sum has the same error everywhere, Winograd's
    is `WINOGRAD_CORNER` times the mean in a tile's corner, and so is the factor of the worst element.
    """
    if winograd and dtype == torch.float32:
        return ErrorFactor(8.0, 8.0 * WINOGRAD_CORNER)
    return ErrorFactor(2.0, 2.0)


class LongSumError(NamedTuple):
    """What is allowed beside the factors.

    Attributes:
        norm: Of the norm of the difference, relative.
        worst: At the worst element, over the largest magnitude.
    """

    norm: float
    worst: float


def long_sum_error(dtype: torch.dtype, weight_shape: Sequence[int], backend: str | None) -> LongSumError:
    """Return the relative error that is allowed beside the factor: that of a float32 sum in one go.

    The reference may sum its n = Cin * kT * kH * kW products in blocks where a backend adds one to the
    other, with several times its error (oneDNN in channels_last_3d on a CPU; `tl.dot`). Added one by one, n
    random products have partial sums that grow with sqrt(k), each rounded by at most half an ulp:
    eps / 2 * sqrt(n / 2) of the result. (Simulated and oneDNN, n from 2304 to 13824: 0.43 of that, since the
    mean rounding is less than half an ulp.)

    An element's error goes with its partial sums, a random walk B: its variance is that of the roundings
    times the integral of B^2, whose tail is exp(-pi^2 / 8 v), so that P(error > r times the root mean square)
    is about exp(-1.11 r). One of 10,000 tensors of 300,000 elements has an error beyond r = 20, where the
    largest result is 4.6 of its own root mean squares: 1.9 times the figure above. Twice as much is allowed
    at the worst element (measured: 0.9 to 1.2 times).

    Args:
        dtype: Of all tensors; 16-bit results are rounded by more than this.
        weight_shape: (Cout, Cin, kT, kH, kW).
        backend: The one that sums. `cpu` has no allowance: it sums in parts.
    """
    if dtype != torch.float32 or backend == "cpu":
        return LongSumError(0.0, 0.0)
    error = torch.finfo(dtype).eps / 2 * math.sqrt(math.prod(weight_shape[1:]) / 2)
    return LongSumError(error, 2 * error)


def moves(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return one pass, and for the residual another: frames and state are read where they lie.

    Weights count as they are given; Winograd's are larger, and transformed once.
    """
    kernel_size = tuple(args.weight.shape[2:])
    read = bytes_of(args.x, args.initial_state, args.weight, args.bias)
    written = bytes_of_shape(args.out_shape, args.out_dtype)
    name = f"causal_conv3d {'x'.join(map(str, kernel_size))}"
    passes = [Pass(name, read, written, kernel_size != (1, 1, 1))]
    if args.residual is not None:
        passes.append(Pass("causal_conv3d, its residual", bytes_of(args.residual), 0))
    return passes


def moves_with_packing(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return the same, and the copy of weights that are not channels last, made on every call."""
    return [*_packing(args.weight), *moves(args, out)]


def moves_padded(args: ConvArgs, out: Tensor | None) -> list[Pass]:
    """Return the passes of a kernel that reads one channels-last tensor: what else it needs is copied first.

    Zeros before a first chunk are counted as a copy, though the kernel may have them for free.
    """
    passes = moves(args, out)
    if args.pad.copies or not is_channels_last_3d(args.x):
        padding = PadArgs.of_conv(args.x, args.initial_state, args.pad, args.temporal_mode)
        passes = [*padding_moves(padding, None), *passes]
    return [*_packing(args.weight), *passes]


def _packing(weight: Tensor) -> list[Pass]:
    if weight.shape[2:].numel() == 1 or is_channels_last_3d(weight):
        return []
    return [Pass("causal_conv3d, its weights", bytes_of(weight), bytes_of(weight))]
