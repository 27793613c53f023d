"""Causal padding by the CUDA module: one launch, over the border only where the frames are there already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import native
from ...core.layout import memory_format_of
from ...core.op import Backend

# The kernel counts the elements of a padded frame in 31 bits, and a block of 1024 may reach over the end.
_MOST_ELEMENTS = 2**31 - 1024


def _why_not(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    *_: object,
) -> str | None:
    top, bottom, left, right = spatial_padding
    return _why_not_frames(x, (x.shape[3] + top + bottom) * (x.shape[4] + left + right))


def _why_not_in_place(storage: Tensor, *_: object) -> str | None:
    return _why_not_frames(storage, storage.shape[3] * storage.shape[4])


def _why_not_frames(x: Tensor, pixels: int) -> str | None:
    if x.element_size() > 8:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    elements = x.shape[1] * pixels
    if elements >= _MOST_ELEMENTS:
        return f"a padded frame has {elements} elements, the kernel takes fewer than {_MOST_ELEMENTS}"
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


PAD = Backend("cuda", _pad, _why_not)
PAD_ = Backend("cuda", _pad_, _why_not_in_place)
