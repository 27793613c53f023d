"""The shape classes of `upsample_conv`: those of a convolution, by scale, input frames and memory format."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from ...core.layout import memory_format_of
from ...core.size_class import sizes_up_to
from ...core.tuned import Measurement, Tuned, architecture_of
from ..causal_conv3d.measurements import (
    GPU_PIXELS,
    PIXELS,
    channel_class,
    class_words,
    pixels_word,
    where_packed_is_kept,
)
from .backends.cpu import packing_of
from .spec import UpsampleArgs

TUNED = Tuned(Path(__file__).parent / "tuned", op="upsample_conv")


def measured(args: UpsampleArgs, precision: str, out: Tensor | None) -> Measurement | None:
    """Return what was measured for calls like this one, or None.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    x, weight, scale = args.x, args.weight, args.scale
    isa = architecture_of(x.device)
    if isa is None:
        return None
    gpu = x.device.type == "cuda"
    memory_format = memory_format_of(x, weight) if out is None else memory_format_of(out)
    given = (x.dtype, x.shape, weight.shape, tuple(scale), memory_format)
    found = TUNED.find(isa, shape_classes(*given, gpu=gpu))
    if gpu:
        return found
    packing = packing_of(args) if found is not None and found.faster else None
    if found is None or packing is None:
        return found
    return where_packed_is_kept(found, weight, packing.kind, packing.size, x.numel() // x.shape[1])


@functools.lru_cache(maxsize=4096)
def shape_classes(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    scale: tuple[int, ...],
    memory_format: torch.memory_format,
    *,
    gpu: bool = False,
) -> tuple[str, ...]:
    """Return the classes whose measurements hold for a call, its own first, then those of smaller frames.

    Args:
        dtype: Of all tensors.
        shape: (B, Cin, T, H, W) of the input, whose pixels count.
        weight_shape: (Cout, Cin, kT, 3, 3).
        scale: (time, height, width).
        memory_format: Of the output.
        gpu: Return the classes of a GPU.
    """
    out_channels, in_channels, *kernel = weight_shape
    word, sizes = (str, GPU_PIXELS) if gpu else (channel_class, PIXELS)
    channels = word(in_channels), word(out_channels)
    last = memory_format == torch.channels_last_3d
    upsampled = "x".join(map(str, scale)) + (" channels_last_3d" if last else "")
    return tuple(
        class_words(dtype, kernel, (1, 1, 1), *channels, shape[0] * shape[2], pixels_word(pixels, sizes))
        + f", upsampled {upsampled}"
        for pixels in sizes_up_to(shape[3] * shape[4], sizes)
    )
