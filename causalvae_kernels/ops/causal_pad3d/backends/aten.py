"""Causal padding with the framework's copies: one write of the frames, then the border in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....core.backend import Backend
from ....core.layout import is_channels_last_3d
from ....temporal.frame_buffer import FrameBuffer, body_of
from ..spec import PadArgs


def fill_border(
    storage: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
) -> None:
    """Write head-room and halo of `storage`; its body is read, never written."""
    if causal_padding:
        inner = body_of(storage, 0, spatial_padding)
        head = inner.narrow(2, 0, causal_padding)
        if initial_state is not None:
            head.copy_(initial_state)
        elif temporal_mode == "replicate":
            head.copy_(inner.narrow(2, causal_padding, 1))  # broadcast over the head-room
        else:
            head.zero_()
    if not any(spatial_padding):
        return
    top, bottom, left, right = spatial_padding
    # Rows first, columns second over all rows: the corners come out as padding twice gives them.
    _fill_halo(storage.narrow(4, left, storage.shape[4] - left - right), 3, top, bottom, spatial_mode)
    _fill_halo(storage, 4, left, right, spatial_mode)


def _fill_halo(storage: Tensor, dim: int, before: int, after: int, mode: str) -> None:
    size = storage.shape[dim] - before - after
    if mode == "zeros":
        storage.narrow(dim, 0, before).zero_()
        storage.narrow(dim, before + size, after).zero_()
        return
    for position in (*range(-before, 0), *range(size, size + after)):
        source = min(max(position, 0), size - 1)
        if mode == "reflect":
            source = (size - 1) - abs(abs(position) - (size - 1))
        storage.select(dim, before + position).copy_(storage.select(dim, before + source))


def _format_of_cat(x: Tensor, initial_state: Tensor | None) -> torch.memory_format:
    """Return what `torch.cat` of both would take: channels last only if both are."""
    parts = (x,) if initial_state is None or initial_state.shape[2] == 0 else (x, initial_state)
    last = all(is_channels_last_3d(part) for part in parts)
    return torch.channels_last_3d if last else torch.contiguous_format


def padded_copy(args: PadArgs) -> Tensor:
    """Return the padded frames in the memory format of `x`, each element written once."""
    x = args.x
    buffer = FrameBuffer.empty(
        x.shape,
        head_room=args.causal_padding,
        halo=tuple(args.spatial_padding),
        dtype=x.dtype,
        device=x.device,
        memory_format=_format_of_cat(x, args.initial_state),
    )
    _pad(buffer.storage, args, "exact")
    return buffer.storage


def _pad(out: Tensor, args: PadArgs, precision: str) -> None:
    body_of(out, args.causal_padding, args.spatial_padding).copy_(args.x)
    fill_border(out, *args[1:])


PAD = Backend("aten", _pad, lambda args, _: padded_copy(args))
PAD_ = Backend("aten", lambda out, args, _: fill_border(out, *args))
