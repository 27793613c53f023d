"""The shape classes of `downsample_conv`: those of its convolution of stride 2, averaging told apart."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...core import native
from ...core.size_class import sizes_up_to
from ...core.tuned import Measurement, Tuned
from ..causal_conv3d.shape_class import PIXELS, channel_class, class_words, pixels_word
from .spec import STRIDE, output_size

TUNED = Tuned(Path(__file__).parent / "tuned")


def measured(
    x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool, precision: str
) -> Measurement | None:
    """Return what was measured for calls like this one, or None; the operator's arguments.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    if x.device.type != "cpu" or native.why_no_cpu() is not None:
        return None
    return TUNED.find(native.cpu_isa(), shape_classes(x.dtype, x.shape, weight.shape, compress_time))


def shape_classes(
    dtype: torch.dtype, shape: tuple[int, ...], weight_shape: tuple[int, ...], compress_time: bool
) -> tuple[str, ...]:
    """Return the classes whose measurements hold for a call, its own first, then those of smaller frames.

    Args:
        dtype: Of all tensors.
        shape: (B, Cin, T, H, W) of the input.
        weight_shape: (Cout, Cin, 1, 3, 3).
        compress_time: Whether pairs of frames are averaged.
    """
    out_channels, in_channels, *kernel = weight_shape
    frames, height, width = output_size(shape, compress_time)
    channels = channel_class(in_channels), channel_class(out_channels)
    averaged = ", averaged" if compress_time else ""
    return tuple(
        class_words(dtype, kernel, STRIDE, *channels, shape[0] * frames, pixels_word(pixels)) + averaged
        for pixels in sizes_up_to(height * width, PIXELS)
    )
