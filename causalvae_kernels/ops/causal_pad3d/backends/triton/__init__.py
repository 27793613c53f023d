"""Causal padding by one Triton kernel: one launch, border only where the frames are there already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .....core.backend import Backend
from .....core.layout import memory_format_of
from .....core.triton_runtime import why_no_triton
from .....temporal.frame_buffer import body_of
from ...spec import BorderArgs, PadArgs, moves, moves_in_place
from .plan import INDEX_LIMIT, plan_pad, why_no_items


def _why_not(args: PadArgs, precision: str, out: Tensor | None) -> str | None:
    x, *border = args
    reason = why_no_triton(x.device) or why_no_items(x)
    # Every program writes an item of its own, so that so few items cannot ask for too many programs.
    if reason is not None or math.prod(args.out_shape) <= INDEX_LIMIT:
        return reason
    if out is None:
        shape, format_ = args.out_shape, memory_format_of(x)
        out = torch.empty(shape, dtype=x.dtype, device="meta", memory_format=format_)
    return plan_pad(out, x, *border, in_place=False).why_not()


def _why_not_in_place(args: BorderArgs, precision: str, out: Tensor) -> str | None:
    reason = why_no_triton(out.device) or why_no_items(out)
    if reason is not None or out.numel() <= INDEX_LIMIT:
        return reason
    body = body_of(out, args.causal_padding, args.spatial_padding)
    return plan_pad(out, body, *args, in_place=True).why_not()


def _pad(out: Tensor, args: PadArgs, precision: str) -> None:
    from .kernels import launch_pad

    launch_pad(out, *args)


def _pad_(storage: Tensor, args: BorderArgs, precision: str) -> None:
    from .kernels import launch_pad_

    launch_pad_(storage, *args)


PAD = Backend("triton", _pad, why_not=_why_not, moves=moves)
PAD_ = Backend("triton", _pad_, why_not=_why_not_in_place, moves=moves_in_place)
