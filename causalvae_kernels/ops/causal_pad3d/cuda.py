"""Causal padding by the CUDA module: one launch, over the border only where the frames are there already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import native
from ...core.layout import memory_format_of
from ...core.op import Backend
from .traffic import moves, moves_in_place

# As csrc/cuda/host/pad_walk.h has them: the elements of a padded frame are counted in 31 bits, in blocks of
# 1024 of which the last may reach over the end; a change of layout takes tiles of a row, 64 by 64, of 8 bytes
# 32.
_BLOCK = 1024
_MOST_ELEMENTS = 2**31 - _BLOCK
_MOST_BLOCKS = 2**31


def why_not(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    *_: object,
) -> str | None:
    """Return why the frames cannot be copied between a border, into whatever layout, or None."""
    top, bottom, left, right = spatial_padding
    size = (x.shape[3] + top + bottom, x.shape[4] + left + right)
    return _why_not_frames(x, causal_padding + x.shape[2], *size)


def _why_not_in_place(
    storage: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    *_: object,
) -> str | None:
    frames = storage.shape[2] if any(spatial_padding) else causal_padding
    return _why_not_frames(storage, frames, *storage.shape[3:])


def _why_not_frames(x: Tensor, frames: int, height: int, width: int) -> str | None:
    """Say what the module would refuse of this many padded frames; its count of blocks may be smaller."""
    if x.element_size() > 8:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    channels = x.shape[1]
    elements = channels * height * width
    if elements >= _MOST_ELEMENTS:
        return f"a padded frame has {elements} elements, the kernel takes fewer than {_MOST_ELEMENTS}"
    side = 64 if x.element_size() < 8 else 32
    tiles = height * -(-width // side) * -(-channels // side)
    blocks = x.shape[0] * frames * max(-(-elements // _BLOCK), tiles)
    if blocks >= _MOST_BLOCKS:
        return f"the padding takes up to {blocks} blocks, a launch has fewer than {_MOST_BLOCKS}"
    return native.why_no_cuda(x.device)


def padded_copy(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    memory_format: torch.memory_format,
) -> Tensor:
    """Return the padded frames in this memory format: padding and change of layout in one pass."""
    batch, channels, frames, height, width = x.shape
    top, bottom, left, right = spatial_padding
    out = torch.empty(
        (batch, channels, causal_padding + frames, top + height + bottom, left + width + right),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format,
    )
    native.cuda_module().causal_pad3d(
        native.describe(out),
        native.describe(x),
        None if initial_state is None else native.describe(initial_state),
        causal_padding,
        tuple(spatial_padding),
        temporal_mode,
        spatial_mode,
        x.element_size(),
        *native.current_stream(x.device),
    )
    return out


def _pad(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    return padded_copy(
        x, initial_state, causal_padding, spatial_padding, temporal_mode, spatial_mode, memory_format_of(x)
    )


def _pad_(
    storage: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> None:
    native.cuda_module().causal_pad3d_(
        native.describe(storage),
        None if initial_state is None else native.describe(initial_state),
        causal_padding,
        tuple(spatial_padding),
        temporal_mode,
        spatial_mode,
        storage.element_size(),
        *native.current_stream(storage.device),
    )


PAD = Backend("cuda", _pad, why_not, moves=moves)
PAD_ = Backend("cuda", _pad_, _why_not_in_place, moves=moves_in_place)
