"""The bytes that our kernels of `downsample_conv` move."""

from __future__ import annotations

from torch import Tensor

from ...core.traffic import Pass, bytes_of, bytes_of_shape
from .spec import DownsampleArgs


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
