"""The shape classes of `downsample_conv`: those of its convolution of stride 2, averaging told apart."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ...core.size_class import sizes_up_to
from ...core.tuned import Measurement, Tuned, architecture_of
from ..causal_conv3d.backends.cpu import tile_packing
from ..causal_conv3d.measurements import (
    GPU_PIXELS,
    PIXELS,
    channel_class,
    class_words,
    pixels_word,
    where_packed_is_kept,
)
from .spec import STRIDE, DownsampleArgs, output_size

TUNED = Tuned(Path(__file__).parent / "tuned", op="downsample_conv")


def measured(args: DownsampleArgs, precision: str, out: Tensor | None) -> Measurement | None:
    """Return what was measured for calls like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    x = args.x
    isa = architecture_of(x.device)
    if isa is None:
        return None
    gpu = x.device.type == "cuda"
    weight = args.weight
    found = TUNED.find(isa, shape_classes(x.dtype, x.shape, weight.shape, args.compress_time, gpu=gpu))
    if gpu or found is None or not found.faster:
        return found
    packing = tile_packing(weight)
    if packing is None:
        return found
    size = output_size(x.shape, args.compress_time)
    return where_packed_is_kept(found, weight, packing.kind, packing.size, x.shape[0] * math.prod(size))


def shape_classes(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    compress_time: bool,
    *,
    gpu: bool = False,
) -> tuple[str, ...]:
    """Return the classes whose measurements hold for a call, its own first, then those of smaller frames.

    Args:
        dtype: Of all tensors.
        shape: (B, Cin, T, H, W) of the input.
        weight_shape: (Cout, Cin, 1, 3, 3).
        compress_time: Whether pairs of frames are averaged.
        gpu: Return the classes of a GPU.
    """
    out_channels, in_channels, *kernel = weight_shape
    frames, height, width = output_size(shape, compress_time)
    word, sizes = (str, GPU_PIXELS) if gpu else (channel_class, PIXELS)
    channels = word(in_channels), word(out_channels)
    averaged = ", averaged" if compress_time else ""
    return tuple(
        class_words(dtype, kernel, STRIDE, *channels, shape[0] * frames, pixels_word(pixels, sizes))
        + averaged
        for pixels in sizes_up_to(height * width, sizes)
    )
