"""Upsampling by the framework's interpolation, then its convolution: what the models do.

Frames that are doubled and convolved one by one are convolved once, then repeated; those that a kernel of
three sees together are written twice, straight into its padded buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...core.layout import memory_format_of
from ...core.op import Backend
from ...temporal.frame_buffer import FrameBuffer
from ..causal_conv3d.aten import CONV
from ..causal_conv3d.spec import paddings
from ..causal_pad3d.aten import fill_border
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
    past, padding_modes = upsampled_state(initial_state, weight, scale), (temporal_mode, spatial_mode)
    if scale[0] == 1 or precision == "exact":
        wide = upsampled(x, scale, first_chunk)
        return CONV.call(wide, weight, bias, past, None, _ONES, _ONES, *padding_modes, precision)
    wide = upsampled(x, (1, *scale[1:]), first_chunk)
    if weight.shape[2] == 1:
        y = CONV.call(wide, weight, bias, None, None, _ONES, _ONES, *padding_modes, precision)
        return double_frames(y, first_chunk)
    pad = paddings(weight.shape[2:], _ONES, *padding_modes)
    storage = _doubled(wide, first_chunk, past, pad.causal, pad.explicit, pad.explicit_mode)
    padding_modes = ("valid", "zeros" if any(pad.implicit) else "valid")
    return CONV.call(storage, weight, bias, None, None, _ONES, _ONES, *padding_modes, precision)


def _doubled(
    x: Tensor, first_single: bool, past: Tensor | None, head_room: int, halo: Sequence[int], spatial_mode: str
) -> Tensor:
    """Return the doubled frames with what stands in front of them and around them."""
    lone = int(first_single)
    buffer = FrameBuffer.empty(
        (*x.shape[:2], 2 * x.shape[2] - lone, *x.shape[3:]),
        head_room=head_room,
        halo=tuple(halo),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    buffer.body[:, :, 1 - lone :: 2].copy_(x)
    buffer.body[:, :, lone::2].copy_(x[:, :, lone:])
    fill_border(buffer.storage, past, head_room, halo, "replicate", spatial_mode)
    return buffer.storage


UPSAMPLE = Backend("aten", _convolve)
