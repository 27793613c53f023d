"""The races of `upsample_conv` and `downsample_conv` on a CPU: our kernel against `aten`, class by class."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops import downsample_conv, upsample_conv
from ..ops.downsample_conv.measurements import shape_classes as downsample_classes
from ..ops.upsample_conv.measurements import shape_classes as upsample_classes
from .race import Job, Race, Way, usable

_BACKENDS = ("cpu",)
_CHANNELS = (16, 32, 64, 128, 256, 512)
# Of an input frame, one for each class of pixels: a bit off the powers, so that tiles do not divide them.
_SIZES = ((4, 4), (8, 9), (15, 18), (30, 35), (60, 70), (120, 140))
_FRAMES = (1, 4)
_FORMATS = (torch.contiguous_format, torch.channels_last_3d)
_SCALES = ((1, 2, 2), (2, 2, 2))
# Direct, for each frame of the kernel; the largest classes take the word of smaller ones.
_MOST_FLOPS = 2.2e10
_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}


def upsample_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each class of CogVideoX's, HunyuanVideo's and Wan's upsamplers."""
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for convolution, (height, width), frames, scale, memory_format in _grid(
            _upsamplers(), _SCALES, _FORMATS
        ):
            kernel_frames, in_channels, out_channels = convolution
            if 2 * 9 * in_channels * out_channels * 4 * frames * height * width > _MOST_FLOPS:
                continue
            shape = (1, in_channels, frames, height, width)
            weight_shape = (out_channels, in_channels, kernel_frames, 3, 3)
            shape_class = upsample_classes(dtype, shape, weight_shape, scale, memory_format)[0]
            options = {"scale": scale, "first_chunk": False}
            _add(found, upsample_conv, shape, weight_shape, dtype, memory_format, options, shape_class)
    return list(found.values())


def downsample_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each class of CogVideoX's downsamplers, and of Wan's, which keep the frames."""
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for channels, (height, width), frames, compress, memory_format in _grid(
            _CHANNELS, (False, True), _FORMATS[:1]
        ):
            shape = (1, channels, frames * (2 if compress else 1), 2 * height, 2 * width)
            weight_shape = (channels, channels, 1, 3, 3)
            if 2 * 9 * channels * channels * frames * height * width > _MOST_FLOPS:
                continue
            shape_class = downsample_classes(dtype, shape, weight_shape, compress)[0]
            options = {"compress_time": compress}
            _add(found, downsample_conv, shape, weight_shape, dtype, memory_format, options, shape_class)
    return list(found.values())


def _upsamplers() -> list[tuple[int, int, int]]:
    """Return (kT, Cin, Cout): CogVideoX's and HunyuanVideo's keep the channels, Wan's halves them."""
    return [
        *((1, channels, channels) for channels in _CHANNELS),
        *((1, 2 * channels, channels) for channels in _CHANNELS[:-1]),
        *((3, channels, channels) for channels in _CHANNELS),
    ]


def _grid(
    convolutions: Sequence[Any], variants: Sequence[Any], formats: Sequence[Any]
) -> list[tuple[Any, ...]]:
    return [
        (convolution, size, frames, variant, memory_format)
        for variant in variants
        for memory_format in formats
        for convolution in convolutions
        for frames in _FRAMES
        for size in _SIZES
    ]


def _add(
    found: dict[str, Job],
    op: Any,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    options: dict[str, Any],
    shape_class: str,
) -> None:
    prepare = functools.partial(_race, op, shape, weight_shape, dtype, memory_format, options)
    name = f"{op.__name__} {'x'.join(map(str, shape))} {shape_class}"
    found.setdefault(shape_class, Job(name, shape_class, prepare))


def _race(
    op: Any,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    options: dict[str, Any],
    device: torch.device,
) -> Race:
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)
    weight = (torch.randn(weight_shape, device=device) / math.prod(weight_shape[1:]) ** 0.5).to(dtype)
    bias = torch.randn(weight_shape[0], device=device).to(dtype)

    def run(backend: str) -> Tensor:
        return op(x, weight, bias, **options, backend=backend)

    can = usable(_BACKENDS, op, x, weight, bias, **options)
    ways = [Way(name, functools.partial(run, name)) for name in ("aten", *can)]
    return Race("x".join(map(str, shape)), ways[0], ways[1:], _TOLERANCE[dtype])
