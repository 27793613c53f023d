"""Causal padding by one Triton kernel: one launch, border only where the frames are there already."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.layout import memory_format_of
from ...core.op import Backend
from ...core.triton_runtime import why_no_triton
from ...temporal.frame_buffer import body_of
from .spec import padded_shape
from .traffic import moves, moves_in_place
from .triton_plan import INDEX_LIMIT, plan_pad, why_no_items


def _why_not(
    x: Tensor, state: Tensor | None, padding: int, halo: Sequence[int], *modes_and_precision: str
) -> str | None:
    reason = why_no_triton(x.device) or why_no_items(x)
    shape = padded_shape(x.shape, padding, halo)
    # Every program writes an item of its own, so that so few items cannot ask for too many programs.
    if reason is not None or math.prod(shape) <= INDEX_LIMIT:
        return reason
    out = torch.empty(shape, dtype=x.dtype, device="meta", memory_format=memory_format_of(x))
    return plan_pad(out, x, state, padding, halo, *modes_and_precision[:2], in_place=False).why_not()


def _why_not_(
    storage: Tensor, state: Tensor | None, padding: int, halo: Sequence[int], *modes_and_precision: str
) -> str | None:
    reason = why_no_triton(storage.device) or why_no_items(storage)
    if reason is not None or storage.numel() <= INDEX_LIMIT:
        return reason
    body = body_of(storage, padding, halo)
    return plan_pad(storage, body, state, padding, halo, *modes_and_precision[:2], in_place=True).why_not()


def _pad(
    x: Tensor,
    initial_state: Tensor | None,
    causal_padding: int,
    spatial_padding: Sequence[int],
    temporal_mode: str,
    spatial_mode: str,
    precision: str,
) -> Tensor:
    from .triton_kernels import launch_pad

    out = torch.empty(
        padded_shape(x.shape, causal_padding, spatial_padding),
        dtype=x.dtype,
        device=x.device,
        memory_format=memory_format_of(x),
    )
    launch_pad(out, x, initial_state, causal_padding, spatial_padding, temporal_mode, spatial_mode)
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
    from .triton_kernels import launch_pad_

    launch_pad_(storage, initial_state, causal_padding, spatial_padding, temporal_mode, spatial_mode)


PAD = Backend("triton", _pad, _why_not, moves=moves)
PAD_ = Backend("triton", _pad_, _why_not_, moves=moves_in_place)
