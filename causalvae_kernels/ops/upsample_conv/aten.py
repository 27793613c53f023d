"""Upsampling by the framework's interpolation, then its convolution: what the models do.

Frames that are doubled and convolved one by one are convolved once, then repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.op import Backend
from ..causal_conv3d.aten import CONV
from .reference import double_frames, upsampled, upsampled_state

_ONES = (1, 1, 1)


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    scale: Sequence[int],
    first_chunk: bool,
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    repeats = scale[0] == 2 and weight.shape[2] == 1 and precision != "exact"
    wide = upsampled(x, (1, *scale[1:]) if repeats else scale, first_chunk)
    past = upsampled_state(initial_state, weight, scale)
    y = CONV.call(wide, weight, bias, past, None, _ONES, _ONES, temporal_mode, spatial_mode, precision)
    return double_frames(y, first_chunk) if repeats else y


UPSAMPLE = Backend("aten", _convolve)
