"""The races of `upsample_conv` and `downsample_conv` on a GPU: Triton's tiles against `aten`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..core.gpu_arch import capability_of
from ..core.op import op_named
from ..ops import downsample_conv, upsample_conv
from ..ops.causal_conv3d.backends.triton.tiles import Tile, configurations
from ..ops.downsample_conv.backends.triton import convolve as downsample_in_triton
from ..ops.downsample_conv.measurements import shape_classes as downsample_classes
from ..ops.upsample_conv.backends.triton import convolve as upsample_in_triton
from ..ops.upsample_conv.measurements import shape_classes as upsample_classes
from ..workloads import (
    FULL_SIZE_DOWNSAMPLE,
    FULL_SIZE_UPSAMPLE,
    DownsampleCase,
    UpsampleCase,
    make_downsample_call,
    make_upsample_call,
)
from .race import Job, Race, Way, usable

_SEED = 0
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
_LAST = torch.channels_last_3d
_OPS = {"upsample_conv": upsample_conv, "downsample_conv": downsample_conv}
_TRITON = {"upsample_conv": upsample_in_triton, "downsample_conv": downsample_in_triton}


def upsample_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each class of the upsampling convolutions of `FULL_SIZE_UPSAMPLE`."""
    return _jobs("upsample_conv", dtypes, FULL_SIZE_UPSAMPLE, make_upsample_call)


def downsample_jobs(dtypes: Sequence[torch.dtype]) -> list[Job]:
    """Return a race for each class of the downsampling convolutions of `FULL_SIZE_DOWNSAMPLE`."""
    return _jobs("downsample_conv", dtypes, FULL_SIZE_DOWNSAMPLE, make_downsample_call)


def class_of(case: UpsampleCase | DownsampleCase, dtype: torch.dtype) -> str:
    """Return the class that the measurement of a case will speak for."""
    if isinstance(case, UpsampleCase):
        weight_shape = (case.out_channels, case.shape[1], case.kernel_frames, 3, 3)
        return upsample_classes(dtype, case.shape, weight_shape, case.scale, _LAST, gpu=True)[0]
    weight_shape = (case.out_channels, case.shape[1], 1, 3, 3)
    return downsample_classes(dtype, case.shape, weight_shape, case.compress_time, gpu=True)[0]


def _jobs(
    op: str, dtypes: Sequence[torch.dtype], cases: Sequence[Any], make: Callable[..., dict[str, Any]]
) -> list[Job]:
    found: dict[str, Job] = {}
    for dtype in dtypes:
        for case in cases:
            shape_class = class_of(case, dtype)
            prepare = functools.partial(_race, op, case, dtype, make)
            found.setdefault(shape_class, Job(f"{op} {case.name} {shape_class}", shape_class, prepare))
    return list(found.values())


def _race(
    op: str, case: Any, dtype: torch.dtype, make: Callable[..., dict[str, Any]], device: torch.device
) -> Race:
    call = make(case, dtype, _SEED, device)
    call["weight"] = call["weight"].contiguous(memory_format=_LAST)
    default = Way("aten", functools.partial(_OPS[op], **call, backend="aten"))
    return Race("x".join(map(str, case.shape)), default, ways(op, call), _TOLERANCE[dtype])


def ways(op: str, call: dict[str, Any]) -> list[Way]:
    """Return every way of ours that can compute a call: Triton with each of its tiles."""
    if not usable(("triton",), op, **call):
        return []
    x = call["x"]
    tiles = configurations(capability_of(x.device), x.dtype)
    return [Way("triton", _triton(op, call, tile), asdict(tile)) for tile in tiles]


def _triton(op: str, call: dict[str, Any], tile: Tile) -> Callable[[], Tensor]:
    found = op_named(op)
    args, _ = found.prepare(**call)

    def convolve() -> Tensor:
        out = found.empty(args)
        _TRITON[op](out, args, tile)
        return out

    return convolve
