"""The shape classes of `causal_conv3d`: calls that share one measurement.

A class is dtype, kernel, stride, channels, one frame or more, and pixels of an output frame. Pixels, and on a
CPU channels, are taken by the nearest measured size on a logarithmic scale. On a GPU a tile fits a number of
channels or does not, so that they are taken as they are. Padding modes do not split classes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...core.packed import has_room, packed_budget
from ...core.selection import requested_backend
from ...core.size_class import sizes_up_to
from ...core.tuned import Measurement, Tuned, architecture_of
from .backends.cpu import packing_of
from .spec import ConvArgs, output_size

CHANNELS = (16, 32, 64, 128, 256, 512)
PIXELS = (16, 64, 256, 1024, 4096, 16384)
GPU_PIXELS = (1024, 4096, 16384, 65536, 262144)
FEW = "few"

TUNED = Tuned(Path(__file__).parent / "tuned", op="causal_conv3d")


def measured(args: ConvArgs, precision: str, out: Tensor | None) -> Measurement | None:
    """Return what was measured for calls like this one, or None; where the output goes makes no difference.

    Raises:
        BadMeasurements: The file of measurements cannot be used.
    """
    x, weight = args.x, args.weight
    isa = architecture_of(x.device)
    if isa is None:
        return None
    gpu = x.device.type == "cuda"
    options = (tuple(args.stride), tuple(args.dilation), args.temporal_mode, args.spatial_mode)
    found = TUNED.find(isa, shape_classes(x.dtype, x.shape, weight.shape, *options, gpu=gpu))
    if gpu or found is None or not found.faster:
        return found
    size = args.size
    packing = packing_of(args, size)
    if packing is None:
        return found
    return where_packed_is_kept(found, weight, packing.kind, packing.size, x.shape[0] * math.prod(size))


def where_packed_is_kept(
    found: Measurement, weight: Tensor, kind: object, size: int, pixels: int
) -> Measurement:
    """Return a measurement that was made with packed weights, with an objection where these cannot be kept.

    Args:
        found: The measurement.
        weight: The weights of the call.
        kind: How they are packed, as `core.packed` takes it.
        size: Bytes that they take so.
        pixels: On how many the call uses them, frames counted.
    """
    objection = why_packed_anew(weight)
    if objection is None and not has_room(weight, kind, size, pixels):
        objection = (
            "measured with packed weights that are kept, and the budget of "
            f"{packed_budget() / 2**20:,.0f} MiB has no room for these"
        )
    return replace(found, objection=objection, passing=True)


def packed_or_aten(weight: Tensor, backend: str | None, cast: bool = False) -> str | None:
    """Return the backend to ask for: weights that are cast or trained would be packed on every call."""
    anew = cast or why_packed_anew(weight) is not None
    return "aten" if anew and requested_backend(backend)[0] == "auto" else backend


def why_packed_anew(weight: Tensor) -> str | None:
    """Return why the packed weights of a call would not serve the next one, or None."""
    if torch.is_grad_enabled() and weight.requires_grad:
        return "measured with packed weights that are kept, and these are being trained"
    return None


# Working the classes out takes 7 us, looking them up 1 us; a model calls with few different shapes.
@functools.lru_cache(maxsize=4096)
def shape_classes(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, ...] = (1, 1, 1),
    dilation: tuple[int, ...] = (1, 1, 1),
    temporal_mode: str = "replicate",
    spatial_mode: str = "zeros",
    *,
    gpu: bool = False,
) -> tuple[str, ...]:
    """Return the classes whose measurements hold for a call, its own first; none with dilation.

    The others are those of smaller frames: large frames take too long to measure for many channels, so
    sizes above the largest measured one use its entry. Frames below 8 pixels, on a GPU below 512, are in no
    class.

    Args:
        dtype: Of all tensors.
        shape: (B, Cin, T, H, W) of the input.
        weight_shape: (Cout, Cin, kT, kH, kW).
        stride: (time, height, width).
        dilation: (time, height, width).
        temporal_mode: As the op takes it.
        spatial_mode: As the op takes it.
        gpu: Return the classes of a GPU.
    """
    if dilation != (1, 1, 1):
        return ()
    out_channels, in_channels, *kernel = weight_shape
    frames, height, width = output_size(shape, kernel, stride, dilation, temporal_mode, spatial_mode)
    channels = str if gpu else channel_class
    sizes = GPU_PIXELS if gpu else PIXELS
    return tuple(
        class_words(
            dtype,
            kernel,
            stride,
            channels(in_channels),
            channels(out_channels),
            shape[0] * frames,
            pixels_word(pixels, sizes),
        )
        for pixels in sizes_up_to(height * width, sizes)
    )


def class_words(
    dtype: torch.dtype,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    channels_in: str,
    channels_out: str,
    frames: int,
    pixels: str,
) -> str:
    """Return a class as words: "float32 1x3x3 stride 1x2x2 128->256, 2+ frames of 1024 pixels"."""
    strided = "" if tuple(stride) == (1, 1, 1) else f" stride {_by(stride)}"
    return (
        f"{str(dtype).removeprefix('torch.')} {_by(kernel_size)}{strided} {channels_in}->{channels_out}, "
        f"{'1 frame' if frames == 1 else '2+ frames'} of {pixels} pixels"
    )


def pixels_word(pixels: int, sizes: Sequence[int] = PIXELS) -> str:
    """Return the number of a class's pixels, the last one as "16384+"."""
    return f"{pixels}+" if pixels == sizes[-1] else str(pixels)


def channel_class(channels: int) -> str:
    """Return "few" for 1 to 7 channels, else the nearest of `CHANNELS`, the last as "512+"."""
    if channels < 8:
        return FEW
    for size in CHANNELS[:-1]:
        if channels * channels < 2 * size * size:
            return str(size)
    return f"{CHANNELS[-1]}+"


def _by(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))
