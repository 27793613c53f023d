"""Causal padding by the native CPU module: threaded, border only where the frames are there already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core import native
from ...core.layout import memory_format_of
from ...core.op import Backend
from .traffic import moves, moves_in_place


def _why_not(x: Tensor, *_: object) -> str | None:
    if x.device.type != "cpu":
        return f"the tensor is on {x.device}, the kernel runs on a CPU"
    if x.element_size() > 8:
        return f"{x.dtype} has {x.element_size()} bytes, the kernel copies 1, 2, 4 or 8"
    return native.why_no_cpu()


def _pad(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    batch, channels, frames, height, width = x.shape
    top, bottom, left, right = spatial_padding
    out = torch.empty(
        (batch, channels, causal_padding + frames, top + height + bottom, left + width + right),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    native.cpu_module().causal_pad3d(
        native.describe(out),
        native.describe(x),
        None if initial_state is None else native.describe(initial_state),
        causal_padding,
        tuple(spatial_padding),
        temporal_mode,
        spatial_mode,
        x.element_size(),
        torch.get_num_threads(),
    )
    return out


def _pad_(
    storage: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> None:
    native.cpu_module().causal_pad3d_(
        native.describe(storage),
        None if initial_state is None else native.describe(initial_state),
        causal_padding,
        tuple(spatial_padding),
        temporal_mode,
        spatial_mode,
        storage.element_size(),
        torch.get_num_threads(),
    )


PAD = Backend("cpu", _pad, _why_not, moves=moves)
PAD_ = Backend("cpu", _pad_, _why_not, moves=moves_in_place)
