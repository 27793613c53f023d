"""The bytes that our kernels of `downsample_conv` move."""

from __future__ import annotations

from torch import Tensor

from ...core.traffic import Pass, bytes_of, bytes_of_shape
from .spec import output_size


def moves(x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool, precision: str) -> list[Pass]:
    """Return one pass, and before it the two that average pairs of frames."""
    size = output_size(x.shape, compress_time)
    written = bytes_of_shape((x.shape[0], weight.shape[0], *size), x.dtype)
    passes, read = [], bytes_of(x)
    if size[0] < x.shape[2]:
        frame, lone, pairs = read // x.shape[2], x.shape[2] % 2, x.shape[2] // 2
        # Halves of the first frames are written, those of the second are added; a lone first frame is copied.
        passes.append(
            Pass("downsample_conv, averages", frame * (lone + 3 * pairs), frame * (lone + 2 * pairs))
        )
        read = frame * size[0]
    return [*passes, Pass("downsample_conv", read + bytes_of(weight, bias), written, True)]


def moves_averaging_once(
    x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool, precision: str
) -> list[Pass]:
    """Return the same for a kernel that averages pairs in one pass, each frame read once."""
    *averages, convolution = moves(x, weight, bias, compress_time, precision)
    written = convolution.read - bytes_of(weight, bias)
    return [*(p._replace(read=bytes_of(x), written=written) for p in averages), convolution]
