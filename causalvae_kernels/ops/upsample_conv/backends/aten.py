"""Upsampling by the framework's interpolation, then its convolution: what the models do.

Frames that are doubled and convolved one by one are convolved once, then repeated; those that a kernel of
three sees together are written twice, straight into its padded buffer.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ....core.backend import Backend
from ....core.layout import memory_format_of
from ....temporal.frame_buffer import FrameBuffer
from ...causal_conv3d.backends.aten import CONV
from ...causal_conv3d.spec import ConvArgs
from ...causal_pad3d.backends.aten import fill_border
from ..reference import double_frames, upsampled, upsampled_state
from ..spec import UpsampleArgs


def _convolve(args: UpsampleArgs, precision: str) -> Tensor:
    scale, first_single = args.scale, args.first_chunk
    doubles_late = scale[0] == 2 and precision != "exact"
    conv = ConvArgs(
        upsampled(args.x, (1, *scale[1:]) if doubles_late else scale, first_single),
        args.weight,
        args.bias,
        upsampled_state(args.initial_state, args.weight, scale),
        temporal_mode=args.temporal_mode,
        spatial_mode=args.spatial_mode,
    )
    if not doubles_late:
        return CONV.make(conv, precision)
    if args.weight.shape[2] == 1:
        return double_frames(CONV.make(conv, precision), first_single)
    pad = conv.pad
    storage = _doubled(conv.x, first_single, conv.initial_state, pad.causal, pad.explicit, pad.explicit_mode)
    padded = conv._replace(
        x=storage,
        initial_state=None,
        temporal_mode="valid",
        spatial_mode="zeros" if any(pad.implicit) else "valid",
    )
    return CONV.make(padded, precision)


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


UPSAMPLE = Backend("aten", make=_convolve)
