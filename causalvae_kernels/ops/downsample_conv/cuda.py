"""Downsampling convolution by the CUDA module: stride 2 behind zeros that are free, below and to the right.

Frames in channels_last_3d are read where they lie; others are rewritten by one pass of the padding kernel.
Averages are made by the framework, in two passes, and are channels last whatever their frames were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.op import Backend
from ..causal_conv3d.cuda import aligned, launch, readable, rows_of_taps, why_not_call
from ..causal_pad3d.cuda import padded_copy
from ..causal_pad3d.cuda import why_not as why_not_padded
from .aten import average_into
from .spec import HALO, STRIDE, output_size
from .traffic import moves

_LAST = torch.channels_last_3d


def _why_not(
    x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool, precision: str
) -> str | None:
    frames, height, width = output_size(x.shape, compress_time)
    reason = why_not_call(x, weight, x.shape[0] * frames * height * width, precision)
    if reason is not None or readable(x) or frames < x.shape[2]:
        return reason
    return why_not_padded(x, None, 0, (0, 0, 0, 0))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, compress_time: bool, precision: str) -> Tensor:
    frames, height, width = output_size(x.shape, compress_time)
    fresh = {"dtype": x.dtype, "device": x.device, "memory_format": _LAST}
    if frames < x.shape[2]:
        averaged = torch.empty((*x.shape[:2], frames, *x.shape[3:]), **fresh)
        average_into(averaged, x)
        x = averaged
    elif not readable(x):
        x = padded_copy(x, None, 0, (0, 0, 0, 0), "zeros", "zeros", _LAST)
    out = torch.empty((x.shape[0], weight.shape[0], frames, height, width), **fresh)
    bias = None if bias is None else aligned(bias.contiguous())
    top, bottom, left, right = HALO
    launch(out, x, rows_of_taps(weight), bias, None, STRIDE, (1, 1, 1), (0, top, left), (0, bottom, right))
    return out


DOWNSAMPLE = Backend("cuda", _convolve, _why_not, moves=moves)
