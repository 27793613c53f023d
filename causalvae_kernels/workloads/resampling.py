"""Awkward calls of the resampling convolutions, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cases import with_layout


@dataclass(frozen=True)
class UpsampleCase:
    """One call of `upsample_conv`.

    Attributes:
        name: What the case guards.
        shape: (B, Cin, T, H, W) of the input.
        out_channels: Cout.
        kernel_frames: kT, 1 or 3.
        scale: (time, height, width).
        layout: Strides of input and state: one of `LAYOUTS`.
        state: Start from an `initial_state`.
        bias: Add a bias.
        options: Further keyword arguments: first_chunk, modes.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    out_channels: int
    kernel_frames: int = 1
    scale: tuple[int, int, int] = (1, 2, 2)
    layout: str = "contiguous"
    state: bool = False
    bias: bool = True
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DownsampleCase:
    """One call of `downsample_conv`.

    Attributes:
        name: What the case guards.
        shape: (B, Cin, T, H, W) of the input.
        out_channels: Cout.
        compress_time: Average pairs of frames.
        layout: Strides of the input: one of `LAYOUTS`.
        bias: Add a bias.
    """

    name: str
    shape: tuple[int, int, int, int, int]
    out_channels: int
    compress_time: bool = False
    layout: str = "contiguous"
    bias: bool = True


_SPACE, _BOTH, _TIME = (1, 2, 2), (2, 2, 2), (2, 1, 1)
_LATER = {"first_chunk": False}
_EDGE = {"spatial_mode": "replicate"}

UPSAMPLE_CASES: tuple[UpsampleCase, ...] = (
    UpsampleCase("frame by frame", (1, 8, 3, 8, 8), 9),
    UpsampleCase("frame by frame, channels last, batch", (2, 40, 2, 8, 12), 33, layout="channels_last_3d"),
    UpsampleCase("frame by frame, edges", (1, 9, 2, 7, 12), 8, options=_EDGE),
    UpsampleCase("few channels, one pixel", (1, 3, 2, 1, 1), 4),
    UpsampleCase("height of one", (2, 8, 1, 1, 13), 5, layout="sliced"),
    UpsampleCase("width of one, edges", (1, 8, 2, 9, 1), 5, options=_EDGE),
    UpsampleCase("frames repeated, first single", (1, 8, 3, 8, 7), 9, 1, _BOTH),
    UpsampleCase("frames repeated, pairs", (2, 8, 2, 8, 8), 9, 1, _BOTH, "permuted", options=_LATER),
    UpsampleCase("space, three frames", (1, 12, 4, 8, 8), 17, 3),
    UpsampleCase("space, three frames, state", (1, 8, 1, 8, 7), 9, 3, layout="sliced", state=True),
    UpsampleCase("space, three frames, zeros", (1, 8, 3, 8, 8), 9, 3, options={"temporal_mode": "zeros"}),
    UpsampleCase("time and space", (1, 8, 3, 8, 8), 9, 3, _BOTH, options=_EDGE),
    UpsampleCase("time and space, even count", (2, 17, 4, 7, 8), 33, 3, _BOTH, "channels_last_3d"),
    UpsampleCase("time and space, one frame", (1, 8, 1, 8, 8), 9, 3, _BOTH, options=_EDGE),
    UpsampleCase("time and space, state", (1, 8, 3, 8, 9), 9, 3, _BOTH, "permuted", True, options=_LATER),
    UpsampleCase("time and space, few pixels", (1, 8, 2, 3, 2), 9, 3, _BOTH, options=_EDGE | _LATER),
    UpsampleCase("time and space, rgb", (1, 3, 2, 8, 8), 5, 3, _BOTH, bias=False),
    UpsampleCase("time, first single", (1, 8, 3, 8, 8), 9, 3, _TIME),
    UpsampleCase("time, first single, even count", (2, 9, 4, 9, 7), 8, 3, _TIME, "channels_last_3d"),
    UpsampleCase("time, one frame", (1, 8, 1, 8, 8), 9, 3, _TIME),
    UpsampleCase("time, pairs", (1, 8, 3, 8, 8), 9, 3, _TIME, options=_LATER | _EDGE),
    UpsampleCase("time, state", (1, 130, 2, 8, 8), 65, 3, _TIME, "sliced", True, options=_LATER),
    UpsampleCase("time, state, one frame", (1, 8, 1, 2, 3), 9, 3, _TIME, state=True, options=_LATER),
    UpsampleCase("time, frame by frame", (1, 8, 3, 8, 8), 9, 1, _TIME),
)

DOWNSAMPLE_CASES: tuple[DownsampleCase, ...] = (
    DownsampleCase("plain", (1, 8, 3, 8, 8), 9),
    DownsampleCase("odd sizes, batch", (2, 17, 2, 9, 13), 33, layout="channels_last_3d"),
    DownsampleCase("smallest frames", (1, 3, 1, 2, 2), 4),
    DownsampleCase("sliced, no bias", (3, 5, 2, 3, 20), 6, layout="sliced", bias=False),
    DownsampleCase("pairs", (1, 8, 4, 8, 7), 9, True),
    DownsampleCase("pairs and a first frame", (2, 9, 5, 7, 8), 8, True, "channels_last_3d"),
    DownsampleCase("one frame of none to average", (1, 8, 1, 6, 6), 8, True),
    DownsampleCase("two frames, permuted", (2, 6, 2, 6, 5), 7, True, "permuted"),
    DownsampleCase("pairs, sliced", (1, 130, 7, 6, 6), 40, True, "sliced"),
)


_LAST = "channels_last_3d"


def _up(
    channels: int, out_channels: int, frames: int, height: int, width: int, **others: Any
) -> UpsampleCase:
    name = f"{channels}x{out_channels}-{frames}x{height}x{width}"
    shape = (1, channels, frames, height, width)
    return UpsampleCase(name, shape, out_channels, layout=_LAST, **{"options": _LATER, **others})


def _down(channels: int, frames: int, height: int, width: int, compress_time: bool) -> DownsampleCase:
    name = f"{channels}-{frames}x{height}x{width}"
    return DownsampleCase(name, (1, channels, frames, height, width), channels, compress_time, _LAST)


# What a GPU is measured by: the resampling convolutions of a chunk in the middle of a stream.
FULL_SIZE_UPSAMPLE: tuple[UpsampleCase, ...] = (
    # CogVideoX, 49 frames of 480x720; those of (2, 1, 1) are the convolutions behind doubled frames
    _up(512, 512, 2, 60, 90, scale=_BOTH),
    _up(256, 256, 4, 120, 180, scale=_BOTH),
    _up(256, 256, 8, 240, 360),
    _up(512, 256, 2, 120, 180, kernel_frames=3, scale=_TIME, state=True),
    _up(256, 256, 4, 240, 360, kernel_frames=3, scale=_TIME, state=True),
    # Wan 2.1, 480x832
    _up(384, 192, 2, 60, 104),
    _up(384, 192, 4, 120, 208),
    _up(192, 96, 4, 240, 416),
    # HunyuanVideo, a tile of 256x256
    _up(512, 512, 5, 32, 32, kernel_frames=3, scale=_BOTH, options=_EDGE),
    _up(512, 512, 9, 64, 64, kernel_frames=3, scale=_BOTH, options=_EDGE),
    _up(256, 256, 17, 128, 128, kernel_frames=3, options=_EDGE),
)

FULL_SIZE_DOWNSAMPLE: tuple[DownsampleCase, ...] = (
    # CogVideoX, 49 frames of 480x720
    _down(128, 8, 480, 720, True),
    _down(256, 4, 240, 360, True),
    _down(256, 2, 120, 180, False),
    # Wan 2.1, 480x832
    _down(96, 4, 480, 832, False),
    _down(192, 4, 240, 416, False),
    _down(384, 2, 120, 208, False),
)


def make_upsample_call(
    case: UpsampleCase, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return fresh random keyword arguments of `upsample_conv` for a case."""
    random = _Random(dtype, seed, device)
    batch, channels, _, height, width = case.shape
    call: dict[str, Any] = {"scale": case.scale, **case.options}
    call["x"] = with_layout(random(*case.shape), case.layout)
    call["weight"] = random.weight(case.out_channels, channels, case.kernel_frames)
    if case.bias:
        call["bias"] = random(case.out_channels)
    if case.state:
        frames = (case.kernel_frames - 1) // case.scale[0]
        call["initial_state"] = with_layout(random(batch, channels, frames, height, width), case.layout)
    return call


def make_downsample_call(
    case: DownsampleCase, dtype: torch.dtype, seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Return fresh random keyword arguments of `downsample_conv` for a case."""
    random = _Random(dtype, seed, device)
    call: dict[str, Any] = {"compress_time": case.compress_time}
    call["x"] = with_layout(random(*case.shape), case.layout)
    call["weight"] = random.weight(case.out_channels, case.shape[1], 1)
    if case.bias:
        call["bias"] = random(case.out_channels)
    return call


class _Random:
    """Normal numbers of one dtype from one seed."""

    def __init__(self, dtype: torch.dtype, seed: int, device: torch.device | str) -> None:
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator, device=self._device)
        return (scale * numbers).to(self._dtype)

    def weight(self, out_channels: int, channels: int, kernel_frames: int) -> Tensor:
        """A kernel that keeps the variance."""
        return self(out_channels, channels, kernel_frames, 3, 3, scale=(9 * channels * kernel_frames) ** -0.5)
